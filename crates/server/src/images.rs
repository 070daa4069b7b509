//! Images of a chat request: from `image_url` parts to what an encoder takes.
//!
//! Nothing is fetched: an image is a data URL in the request. What a picture takes while it is
//! decoded, and its pixels until the encoder has seen them, are in the [`Intake`](super::intake).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::intake::{Ticket, Wait};
use mlxcel_runtime::text::{ChatMessage, Content, ContentPart};
use mlxcel_runtime::vision::{self, ImageProcessor, Pixels, RgbImage};

/// What the encoder takes, and the room that it needs until then.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) pixels: Pixels,
    #[expect(dead_code, reason = "held as long as the pixels are")]
    ticket: Ticket,
}

/// The decoded images of a request, in order, and which ones they are.
#[derive(Debug)]
pub(super) struct Album {
    pub(super) pictures: Vec<RgbImage>,
    /// SHA-256 of each file.
    pub(super) digests: Vec<[u8; 32]>,
    ticket: Ticket,
}

/// The value of a part's `image_url`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageUrl {
    url: String,
    detail: Option<String>,
}

/// Takes the images out of `messages`, as files, in order; their parts stay behind as templates know
/// them, `{"type": "image"}`.
///
/// # Errors
/// A part that is neither text nor image, and an image that is no data URL.
pub(super) fn take(messages: &mut [ChatMessage]) -> Result<Vec<Vec<u8>>, ApiError> {
    let mut files = Vec::new();
    for message in messages {
        let Some(Content::Parts(parts)) = &mut message.content else { continue };
        for part in parts {
            match part.kind.as_str() {
                "text" if part.text.is_some() => {}
                "image_url" => files.push(take_file(part)?),
                other => {
                    let kind: String = other.chars().take(40).collect();
                    return Err(wrong(format!(
                        "a part of a message is a `text` with its text, or an `image_url`, not `{kind}`"
                    )));
                }
            }
        }
    }
    Ok(files)
}

fn wrong(message: impl Into<String>) -> ApiError {
    ApiError::parameter("messages", message)
}

fn take_file(part: &mut ContentPart) -> Result<Vec<u8>, ApiError> {
    let value = part.extra.remove("image_url").unwrap_or(Value::Null);
    let image = ImageUrl::deserialize(value);
    let image = image.map_err(|error| wrong(format!("`image_url` takes an object: {error}")))?;
    let text = part.text.is_some().then_some("text");
    if let Some(field) = part.extra.keys().next().map(String::as_str).or(text) {
        return Err(wrong(format!("a part with `image_url` has no `{field}`")));
    }
    if image.detail.is_some_and(|detail| detail != "auto") {
        return Err(wrong(
            "`detail` is `auto` here: the model's files say how images are prepared",
        ));
    }
    part.kind = "image".to_owned();
    decode_url(&image.url)
}

/// The bytes of a data URL.
fn decode_url(url: &str) -> Result<Vec<u8>, ApiError> {
    let start = url.get(..5).unwrap_or_default().to_ascii_lowercase();
    if start != "data:" {
        return Err(wrong(
            "this server fetches no images: send them as `data:image/png;base64,…` in `url`",
        ));
    }
    let parts = url.split_once(',').filter(|(head, _)| head.ends_with(";base64"));
    let (_, data) = parts.ok_or_else(|| wrong("a data URL of an image is `data:TYPE;base64,…`"))?;
    let decoded = STANDARD.decode(data);
    decoded.map_err(|error| wrong(format!("the data of an image is no base64: {error}")))
}

impl Album {
    /// Decodes `files`, one after the other.
    ///
    /// # Errors
    /// What is no image, or too large; [`Ticket::block_for`]'s.
    pub(super) fn decode(
        files: Vec<Vec<u8>>,
        mut ticket: Ticket,
        wait: &Wait,
    ) -> Result<Self, ApiError> {
        let (mut pictures, mut digests) = (Vec::new(), Vec::new());
        let mut held = 0;
        for (index, file) in files.into_iter().enumerate() {
            let origin = format!("image {}", index + 1);
            let decoding =
                vision::decoding_bytes(&file, &origin).map_err(mlxcel_runtime::Error::from)?;
            ticket.block_for(decoding.saturating_add(held), wait)?;
            let picture = vision::decode(&file, &origin).map_err(mlxcel_runtime::Error::from)?;
            held += picture.as_raw().len() as u64;
            ticket.block_for(held, wait)?;
            digests.push(Sha256::digest(&file).into());
            pictures.push(picture);
        }
        Ok(Self { pictures, digests, ticket })
    }

    /// Makes pixels of the pictures.
    ///
    /// # Errors
    /// A picture that the model does not take, and [`Ticket::block_for`]'s.
    pub(super) fn prepare(
        self,
        preprocessor: &ImageProcessor,
        wait: &Wait,
    ) -> Result<Vec<Picture>, ApiError> {
        let mut ticket = self.ticket;
        let one = |picture: RgbImage| {
            let pixels = preprocessor.pixels(&picture).map_err(mlxcel_runtime::Error::from)?;
            let bytes = size_of_val(pixels.values.as_slice()) as u64;
            ticket.block_for_more(bytes, wait)?;
            Ok(Picture { pixels, ticket: ticket.split(bytes) })
        };
        self.pictures.into_iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn files(content: Value) -> Result<(Vec<Vec<u8>>, ChatMessage), String> {
        let message = json!({ "role": "user", "content": content });
        let mut messages: Vec<ChatMessage> = vec![serde_json::from_value(message).unwrap()];
        let error = |e: ApiError| e.json()["error"]["message"].as_str().unwrap().to_owned();
        let files = take(&mut messages).map_err(error)?;
        Ok((files, messages.remove(0)))
    }

    fn image(url: Value) -> Value {
        json!([{ "type": "image_url", "image_url": url }])
    }

    #[test]
    fn files_are_taken_out_of_their_parts() {
        let content = json!([
            { "type": "text", "text": "what" },
            { "type": "image_url", "image_url": { "url": "data:image/png;base64,AQID" } },
            { "type": "image_url",
              "image_url": { "url": "DATA:image/jpeg;base64,BAU=", "detail": "auto" } },
        ]);
        let (files, message) = files(content).unwrap();
        assert_eq!(files, [vec![1, 2, 3], vec![4, 5]]);
        let left = json!([{ "type": "text", "text": "what" }, { "type": "image" },
            { "type": "image" }]);
        assert_eq!(serde_json::to_value(message).unwrap()["content"], left);
    }

    #[test]
    fn what_is_no_data_url_is_named() {
        let check = |content: Value, expected: &str| {
            let error = files(content.clone()).unwrap_err();
            assert!(error.contains(expected), "{content}: {error}");
        };
        for url in ["https://example.org/a.png", "http://127.0.0.1/", "file:///etc/passwd", "", "é"]
        {
            check(image(json!({ "url": url })), "fetches no images");
        }
        check(image(json!({ "url": "data:image/png,abc" })), "data:TYPE;base64");
        check(image(json!({ "url": "data:image/png;base64" })), "data:TYPE;base64");
        check(image(json!({ "url": "data:;base64,A?==" })), "no base64");
        check(image(json!({ "url": "data:;base64,AQI=", "detail": "high" })), "`detail` is `auto`");
        check(image(json!({ "url": "data:;base64,AQI=", "size": 3 })), "unknown field `size`");
        check(image(json!("data:;base64,AQI=")), "takes an object");
        check(json!([{ "type": "image_url" }]), "takes an object");
        check(json!([{ "type": "image" }]), "not `image`");
        check(json!([{ "type": "input_audio", "input_audio": {} }]), "not `input_audio`");
        check(json!([{ "type": "text" }]), "not `text`");
        let both = json!([{ "type": "image_url", "image_url": { "url": "data:;base64,AQI=" },
            "cache": true }]);
        check(both, "has no `cache`");
    }
}
