//! Images of a chat request: from `image_url` parts to pixels.
//!
//! Nothing is fetched: an image is a data URL in the request. Memory for decoding, and for pixels
//! until they are encoded, is reserved in the [`RequestBudget`](super::request_budget).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mlxcel_runtime::text::{ChatMessage, Content, ContentPart};
use mlxcel_runtime::vision::{self, ImageProcessor, Pixels, RgbImage};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::request_budget::{Reservation, WaitLimit};

/// Input of the encoder, with its memory.
#[derive(Debug)]
pub(super) struct PreparedImage {
    pub(super) pixels: Pixels,
    #[expect(dead_code, reason = "held as long as the pixels are")]
    reservation: Reservation,
}

/// Decoded images of a request, in order.
#[derive(Debug)]
pub(super) struct DecodedImages {
    pub(super) images: Vec<RgbImage>,
    /// SHA-256 of each file.
    pub(super) digests: Vec<[u8; 32]>,
    reservation: Reservation,
}

/// The value of a part's `image_url`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageUrl {
    url: String,
    detail: Option<String>,
}

/// Takes the files of images out of `messages`, in order, and leaves the parts that chat templates
/// expect, `{"type": "image"}`.
///
/// # Errors
/// A part that is neither text nor image, and an image that is not a data URL.
pub(super) fn take_files(messages: &mut [ChatMessage]) -> Result<Vec<Vec<u8>>, ApiError> {
    let mut files = Vec::new();
    for message in messages {
        let Some(Content::Parts(parts)) = &mut message.content else { continue };
        for part in parts {
            match part.kind.as_str() {
                "text" if part.text.is_some() => {}
                "image_url" => files.push(take_file(part)?),
                other => {
                    let kind: String = other.chars().take(40).collect();
                    return Err(invalid(format!(
                        "a part of a message is a `text` with its text, or an `image_url`, not `{kind}`"
                    )));
                }
            }
        }
    }
    Ok(files)
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::parameter("messages", message)
}

fn take_file(part: &mut ContentPart) -> Result<Vec<u8>, ApiError> {
    let value = part.extra.remove("image_url").unwrap_or(Value::Null);
    let image = ImageUrl::deserialize(value);
    let image = image.map_err(|error| invalid(format!("`image_url` takes an object: {error}")))?;
    let text = part.text.is_some().then_some("text");
    if let Some(field) = part.extra.keys().next().map(String::as_str).or(text) {
        return Err(invalid(format!("a part with `image_url` has no `{field}`")));
    }
    if image.detail.is_some_and(|detail| detail != "auto") {
        return Err(invalid(
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
        return Err(invalid(
            "this server fetches no images: send them as `data:image/png;base64,…` in `url`",
        ));
    }
    let parts = url.split_once(',').filter(|(head, _)| head.ends_with(";base64"));
    let (_, data) =
        parts.ok_or_else(|| invalid("the data URL of an image is `data:TYPE;base64,…`"))?;
    let decoded = STANDARD.decode(data);
    decoded.map_err(|error| invalid(format!("the data of an image is not base64: {error}")))
}

impl DecodedImages {
    /// Decodes `files`, one after the other.
    ///
    /// # Errors
    /// Files that are no images, or too large; errors of [`Reservation::block_for`].
    pub(super) fn decode(
        files: Vec<Vec<u8>>,
        mut reservation: Reservation,
        limit: &WaitLimit,
    ) -> Result<Self, ApiError> {
        let mut images = Vec::new();
        let mut digests = Vec::new();
        let mut held_bytes = 0;
        for (index, file) in files.into_iter().enumerate() {
            let origin = format!("image {}", index + 1);
            let decoding_bytes = vision::decoding_bytes(&file, &origin)?;
            reservation.block_for(decoding_bytes.saturating_add(held_bytes), limit)?;
            let image = vision::decode(&file, &origin)?;
            held_bytes += image.as_raw().len() as u64;
            reservation.block_for(held_bytes, limit)?;
            digests.push(Sha256::digest(&file).into());
            images.push(image);
        }
        Ok(Self { images, digests, reservation })
    }

    /// Resizes and normalises the images as the model wants them.
    ///
    /// # Errors
    /// An image that the model does not take, and errors of [`Reservation::block_for`].
    pub(super) fn prepare(
        self,
        preprocessor: &ImageProcessor,
        limit: &WaitLimit,
    ) -> Result<Vec<PreparedImage>, ApiError> {
        let mut reservation = self.reservation;
        let mut prepared = Vec::new();
        for image in self.images {
            let pixels = preprocessor.pixels(&image)?;
            let bytes = size_of_val(pixels.values.as_slice()) as u64;
            reservation.block_for_more(bytes, limit)?;
            prepared.push(PreparedImage { pixels, reservation: reservation.split(bytes) });
        }
        Ok(prepared)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn files(content: Value) -> Result<(Vec<Vec<u8>>, ChatMessage), String> {
        let message = json!({ "role": "user", "content": content });
        let mut messages: Vec<ChatMessage> = vec![serde_json::from_value(message).unwrap()];
        let files = take_files(&mut messages).map_err(|error| error.message().to_owned())?;
        Ok((files, messages.remove(0)))
    }

    fn image(url: Value) -> Value {
        json!([{ "type": "image_url", "image_url": url }])
    }

    #[test]
    fn files_are_taken_out_of_parts() {
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
    fn anything_but_a_data_url_is_refused() {
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
        check(image(json!({ "url": "data:;base64,A?==" })), "not base64");
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
