//! A reply as server-sent events: the body of a response that ends when its answers do.
//!
//! When the client goes away, hyper drops the body, the channel closes, and the engine's thread
//! forgets the request at its next pass.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Bytes, HttpBody};
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use super::job::Event;
use super::reply::{Reply, Usage};

/// The body.
pub(super) struct EventStream {
    reply: Reply,
    events: UnboundedReceiver<Event>,
    /// Whether usage comes in a chunk of its own, as `stream_options.include_usage` asks; else it
    /// is in the last answer's last chunk.
    own_usage_chunk: bool,
    /// Per answer: whether its first chunk was sent, and how many characters were.
    answers: Vec<Progress>,
    open: usize,
    usage: Usage,
    ready: VecDeque<Bytes>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    opened: bool,
    characters: usize,
}

impl EventStream {
    /// The rest of a reply whose first event was `first`.
    pub(super) fn new(
        reply: Reply,
        first: Event,
        events: UnboundedReceiver<Event>,
        own_usage_chunk: bool,
    ) -> Self {
        let mut stream = Self {
            answers: vec![Progress::default(); reply.answers],
            open: reply.answers,
            reply,
            events,
            own_usage_chunk,
            usage: Usage::default(),
            ready: VecDeque::new(),
        };
        stream.take(first);
        stream
    }

    fn send(&mut self, value: &Value) {
        self.ready.push_back(Bytes::from(format!("data: {value}\n\n")));
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Started { cached_tokens } => self.usage.cached_tokens += cached_tokens,
            Event::Token { answer, text, logprobs } => {
                self.open_answer(answer);
                let Some(progress) = self.answers.get_mut(answer) else { return };
                let offset = progress.characters;
                progress.characters += logprobs.as_ref().map_or(0, |l| self.reply.characters(l));
                let logprobs = logprobs.map_or(Value::Null, |l| self.reply.logprobs(&[l], offset));
                let piece = self.reply.piece(answer, &text, logprobs, None);
                self.send(&self.reply.chunk(vec![piece], None));
            }
            Event::Finished { answer, finish, text, generated_tokens } => {
                self.open_answer(answer);
                self.usage.generated_tokens += generated_tokens;
                self.open = self.open.saturating_sub(1);
                if !text.is_empty() {
                    let piece = self.reply.piece(answer, &text, Value::Null, None);
                    self.send(&self.reply.chunk(vec![piece], None));
                }
                let piece = self.reply.piece(answer, "", Value::Null, Some(finish));
                let last = self.open == 0;
                let usage = (last && !self.own_usage_chunk).then_some(self.usage);
                self.send(&self.reply.chunk(vec![piece], usage));
                if last {
                    self.end();
                }
            }
            Event::Failed(error) => {
                self.send(&error.json());
                self.open = 0;
                self.events.close();
            }
        }
    }

    fn open_answer(&mut self, answer: usize) {
        let Some(progress) = self.answers.get_mut(answer) else { return };
        if !std::mem::replace(&mut progress.opened, true)
            && let Some(opening) = self.reply.opening(answer)
        {
            self.send(&self.reply.chunk(vec![opening], None));
        }
    }

    fn end(&mut self) {
        if self.own_usage_chunk {
            self.send(&self.reply.chunk(Vec::new(), Some(self.usage)));
        }
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
    }
}

impl HttpBody for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.open == 0 {
                return Poll::Ready(None);
            }
            match self.events.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(event)) => self.take(event),
                // The engine's thread is gone: the client sees a stream without `[DONE]`.
                Poll::Ready(None) => return Poll::Ready(None),
            }
        }
    }
}
