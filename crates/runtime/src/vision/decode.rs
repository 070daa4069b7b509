//! Decoding of PNG, JPEG and WebP files, within limits.
//!
//! The size in the header is checked before pixels are decoded or allocated.

use std::io::Cursor;

use image::RgbImage;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::ImageError;

/// Largest accepted number of pixels.
const MAX_IMAGE_PIXELS: u64 = 50_000_000;

/// Largest accepted size of an image file, in bytes.
pub const MAX_IMAGE_BYTES: u64 = 64 << 20;

/// Memory that decoding may need per pixel: twice that of four 16-bit channels, which also suffices
/// for a resize afterwards.
const BYTES_PER_PIXEL: u64 = 16;

/// Memory that [`decode`] may need for a file, in bytes, computed from its header.
///
/// # Errors
/// The errors of [`decode`] that the header reveals.
pub fn decoding_bytes(bytes: &[u8], origin: &str) -> Result<u64, ImageError> {
    let (width, height) = open(bytes, origin)?.dimensions();
    Ok(u64::from(width) * u64::from(height) * BYTES_PER_PIXEL)
}

/// Decodes an image file, applies its orientation and drops its alpha channel. `origin` names the
/// file in errors.
///
/// # Errors
/// An unsupported format, more than 50 million pixels, more than [`MAX_IMAGE_BYTES`], or a damaged
/// file.
pub fn decode(bytes: &[u8], origin: &str) -> Result<RgbImage, ImageError> {
    let mut decoder = open(bytes, origin)?;
    let orientation = decoder.orientation().map_err(|error| corrupt(error, origin))?;
    let image = DynamicImage::from_decoder(decoder);
    let mut image = image.map_err(|error| corrupt(error, origin))?;
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

/// Opens a decoder, which reads the header, and checks the limits.
fn open<'a>(bytes: &'a [u8], origin: &str) -> Result<impl ImageDecoder + 'a, ImageError> {
    if bytes.len() as u64 > MAX_IMAGE_BYTES {
        return Err(ImageError::TooManyBytes {
            origin: origin.to_owned(),
            bytes: bytes.len() as u64,
            max_bytes: MAX_IMAGE_BYTES,
        });
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format(bytes, origin)?);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_IMAGE_PIXELS * BYTES_PER_PIXEL);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|error| corrupt(error, origin))?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MAX_IMAGE_PIXELS || pixels == 0 {
        return Err(ImageError::TooManyPixels {
            origin: origin.to_owned(),
            width,
            height,
            max_pixels: MAX_IMAGE_PIXELS,
        });
    }
    Ok(decoder)
}

fn corrupt(source: image::ImageError, origin: &str) -> ImageError {
    ImageError::Corrupt { origin: origin.to_owned(), source }
}

fn format(bytes: &[u8], origin: &str) -> Result<ImageFormat, ImageError> {
    let found = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => {
            return Ok(format);
        }
        Ok(other) => format!("a file of type {}", other.to_mime_type()),
        Err(_) => "no image".to_owned(),
    };
    Err(ImageError::UnsupportedFormat { origin: origin.to_owned(), found })
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn sample() -> RgbImage {
        RgbImage::from_fn(5, 3, |x, y| {
            let byte = |n: u32| u8::try_from(n).unwrap();
            Rgb([byte(50 * x), byte(80 * y), 7])
        })
    }

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        sample().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn lossless_formats_round_trip() {
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            assert_eq!(decode(&encoded(format), "a").unwrap(), sample());
            assert_eq!(decoding_bytes(&encoded(format), "a").unwrap(), 5 * 3 * 16);
        }
        assert_eq!(decode(&encoded(ImageFormat::Jpeg), "a").unwrap().dimensions(), (5, 3));
    }

    #[test]
    fn other_files_and_damaged_ones_are_rejected() {
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

    /// The header of a PNG of a hundred megapixels, without data. The size in the error shows that
    /// nothing was decoded.
    #[test]
    fn a_decompression_bomb_is_rejected_by_its_header() {
        let mut png = encoded(ImageFormat::Png)[..33].to_vec();
        png[16..24].copy_from_slice(&[0, 0, 39, 16, 0, 0, 39, 16]);
        let checksum = crc32fast::hash(&png[12..29]).to_be_bytes();
        png[29..33].copy_from_slice(&checksum);
        png.extend_from_slice(&[0, 0, 0, 0, b'I', b'D', b'A', b'T', 0x35, 0xaf, 0x06, 0x1e]);
        let error = decode(&png, "bomb.png").unwrap_err();
        assert!(matches!(error, ImageError::TooManyPixels { .. }), "{error}");
        assert!(error.to_string().contains("bomb.png has 10000 × 10000 pixels"), "{error}");
        let long = vec![0; usize::try_from(MAX_IMAGE_BYTES).unwrap() + 1];
        assert!(decode(&long, "long").unwrap_err().to_string().contains("more than the 64.0 MiB"));
    }
}
