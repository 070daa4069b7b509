//! PNG, JPEG and WebP files within limits.
//!
//! The size is read from the header and checked before anything is decoded or allocated.

use std::io::Cursor;

use image::RgbImage;
use image::{
    DynamicImage, ImageDecoder, ImageError as DecodeError, ImageFormat, ImageReader, Limits,
};

use super::ImageError;

/// Most pixels of an image that is decoded.
pub const MAX_IMAGE_PIXELS: u64 = 50_000_000;

/// Most bytes of an image file.
pub const MAX_IMAGE_BYTES: u64 = 64 << 20;

/// Bytes that decoding may take for a pixel: 16 bits and an alpha channel, and as much again. That
/// is enough for a resize afterwards too.
const BYTES_PER_PIXEL: u64 = 16;

/// Bytes that [`decode`] may take for a file, which is not decoded: its header says its size.
///
/// # Errors
/// As [`decode`], as far as a header shows it.
pub fn decoding_bytes(bytes: &[u8], origin: &str) -> Result<u64, ImageError> {
    let (width, height) = open(bytes, origin)?.dimensions();
    Ok(u64::from(width) * u64::from(height) * BYTES_PER_PIXEL)
}

/// The picture in a file's bytes, upright, its transparency left out; `origin` names it in errors.
///
/// # Errors
/// Another format, more pixels than [`MAX_IMAGE_PIXELS`] or more bytes than [`MAX_IMAGE_BYTES`], and
/// files that are damaged.
pub fn decode(bytes: &[u8], origin: &str) -> Result<RgbImage, ImageError> {
    let mut decoder = open(bytes, origin)?;
    let orientation = decoder.orientation().map_err(|error| corrupt(&error, origin))?;
    let picture = DynamicImage::from_decoder(decoder);
    let mut picture = picture.map_err(|error| corrupt(&error, origin))?;
    picture.apply_orientation(orientation);
    Ok(picture.into_rgb8())
}

/// A decoder that has read the header and keeps to the limits.
fn open<'a>(bytes: &'a [u8], origin: &str) -> Result<impl ImageDecoder + 'a, ImageError> {
    if bytes.len() as u64 > MAX_IMAGE_BYTES {
        let (found, most) = (megabytes(bytes.len() as u64), megabytes(MAX_IMAGE_BYTES));
        return Err(ImageError::TooLarge { origin: origin.to_owned(), found, most });
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format(bytes, origin)?);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_IMAGE_PIXELS * BYTES_PER_PIXEL);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|error| corrupt(&error, origin))?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MAX_IMAGE_PIXELS || pixels == 0 {
        let found = format!("{width} × {height} pixels");
        let most = format!("{MAX_IMAGE_PIXELS} pixels");
        return Err(ImageError::TooLarge { origin: origin.to_owned(), found, most });
    }
    Ok(decoder)
}

fn corrupt(error: &DecodeError, origin: &str) -> ImageError {
    ImageError::Corrupt { origin: origin.to_owned(), reason: error.to_string() }
}

fn format(bytes: &[u8], origin: &str) -> Result<ImageFormat, ImageError> {
    let found = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => {
            return Ok(format);
        }
        Ok(other) => format!("a file of type {}", other.to_mime_type()),
        Err(_) => "no image".to_owned(),
    };
    Err(ImageError::Format { origin: origin.to_owned(), found })
}

fn megabytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn picture() -> RgbImage {
        RgbImage::from_fn(5, 3, |x, y| {
            let byte = |n: u32| u8::try_from(n).unwrap();
            Rgb([byte(50 * x), byte(80 * y), 7])
        })
    }

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn lossless_formats_give_their_pixels_back() {
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            assert_eq!(decode(&encoded(format), "a").unwrap(), picture());
            assert_eq!(decoding_bytes(&encoded(format), "a").unwrap(), 5 * 3 * 16);
        }
        assert_eq!(decode(&encoded(ImageFormat::Jpeg), "a").unwrap().dimensions(), (5, 3));
    }

    #[test]
    fn what_is_no_such_image_is_named() {
        let error = |bytes: &[u8]| decode(bytes, "a.bin").unwrap_err().to_string();
        assert!(error(b"GIF89a\x01\x00\x01\x00").contains("a.bin is a file of type image/gif"));
        assert!(error(b"hello, I am text").contains("a.bin is no image (supported: PNG"));
        assert!(error(b"").contains("a.bin is no image"));
        let png = encoded(ImageFormat::Png);
        for length in [9, 20, 40, png.len() - 20] {
            assert!(error(&png[..length]).contains("a.bin cannot be decoded"), "{length}");
        }
        let mut broken = png.clone();
        broken[45] ^= 0xff;
        assert!(error(&broken).contains("a.bin cannot be decoded"));
    }

    /// The header of a PNG of a hundred megapixels and no data at all: that its size is named shows
    /// that nothing was decoded.
    #[test]
    fn a_bomb_is_refused_from_its_header() {
        let mut png = encoded(ImageFormat::Png)[..33].to_vec();
        png[16..24].copy_from_slice(&[0, 0, 39, 16, 0, 0, 39, 16]);
        let checksum = crc32fast::hash(&png[12..29]).to_be_bytes();
        png[29..33].copy_from_slice(&checksum);
        png.extend_from_slice(&[0, 0, 0, 0, b'I', b'D', b'A', b'T', 0x35, 0xaf, 0x06, 0x1e]);
        let error = decode(&png, "bomb.png").unwrap_err();
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
        assert!(error.to_string().contains("bomb.png has 10000 × 10000 pixels"), "{error}");
        let long = vec![0; usize::try_from(MAX_IMAGE_BYTES).unwrap() + 1];
        assert!(decode(&long, "long").unwrap_err().to_string().contains("more than the 64 MiB"));
    }
}
