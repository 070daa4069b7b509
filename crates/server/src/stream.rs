//! Streamed responses: server-sent events until the completions are finished.
//!
//! When the client leaves, hyper drops the body, the channel closes, and the worker drops the request
//! before its next pass.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Bytes, HttpBody};
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use super::completions::{ResponseBuilder, Usage};
use super::messages::EngineEvent;

/// Body of a streamed response.
pub(super) struct EventStream {
    builder: ResponseBuilder,
    events: UnboundedReceiver<EngineEvent>,
    /// True if usage gets a chunk of its own, as `stream_options.include_usage` requests; otherwise
    /// it is in the last chunk of the last completion.
    own_usage_chunk: bool,
    /// Per completion.
    completions: Vec<StreamedCompletion>,
    open: usize,
    usage: Usage,
    ready: VecDeque<Bytes>,
}

#[derive(Clone, Copy, Debug, Default)]
struct StreamedCompletion {
    /// True if the first chunk was sent.
    opened: bool,
    /// Characters sent.
    characters: usize,
}

impl EventStream {
    /// Stream of a request whose first event was `first`.
    pub(super) fn new(
        builder: ResponseBuilder,
        first: EngineEvent,
        events: UnboundedReceiver<EngineEvent>,
        own_usage_chunk: bool,
    ) -> Self {
        let mut stream = Self {
            completions: vec![StreamedCompletion::default(); builder.completions],
            open: builder.completions,
            builder,
            events,
            own_usage_chunk,
            usage: Usage::default(),
            ready: VecDeque::new(),
        };
        stream.add(first);
        stream
    }

    fn send(&mut self, value: &Value) {
        self.ready.push_back(Bytes::from(format!("data: {value}\n\n")));
    }

    fn add(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Started { cached_tokens } => self.usage.cached_tokens += cached_tokens,
            EngineEvent::Token { index, text, logprobs } => {
                self.open_completion(index);
                let Some(sent) = self.completions.get_mut(index) else { return };
                let offset = sent.characters;
                sent.characters += logprobs.as_ref().map_or(0, |l| self.builder.characters(l));
                let logprobs =
                    logprobs.map_or(Value::Null, |l| self.builder.logprobs(&[l], offset));
                let piece = self.builder.piece(index, &text, logprobs, None);
                self.send(&self.builder.chunk(vec![piece], None));
            }
            EngineEvent::Finished { index, finish, text, generated_tokens } => {
                self.open_completion(index);
                self.usage.generated_tokens += generated_tokens;
                self.open = self.open.saturating_sub(1);
                if !text.is_empty() {
                    let piece = self.builder.piece(index, &text, Value::Null, None);
                    self.send(&self.builder.chunk(vec![piece], None));
                }
                let piece = self.builder.piece(index, "", Value::Null, Some(finish));
                let last = self.open == 0;
                let usage = (last && !self.own_usage_chunk).then_some(self.usage);
                self.send(&self.builder.chunk(vec![piece], usage));
                if last {
                    self.end();
                }
            }
            EngineEvent::Failed(error) => {
                self.send(&error.json());
                self.open = 0;
                self.events.close();
            }
        }
    }

    fn open_completion(&mut self, index: usize) {
        let Some(sent) = self.completions.get_mut(index) else { return };
        if !std::mem::replace(&mut sent.opened, true)
            && let Some(opening) = self.builder.opening(index)
        {
            self.send(&self.builder.chunk(vec![opening], None));
        }
    }

    fn end(&mut self) {
        if self.own_usage_chunk {
            self.send(&self.builder.chunk(Vec::new(), Some(self.usage)));
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
                Poll::Ready(Some(event)) => self.add(event),
                // The engine thread is gone: the client sees a stream without `[DONE]`.
                Poll::Ready(None) => return Poll::Ready(None),
            }
        }
    }
}
