//! Replies of the transmission phase: headers to put before data that isn't copied.
//!
//! Reads and block status are answered in one chunk each when structured replies were negotiated (which also honours
//! the DF flag); everything else by a simple reply.

use super::{
    BASE_ALLOCATION_ID, Errno, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, extent_flag,
};
use bytes::{BufMut, BytesMut};
use wire::router::{Extent, ExtentKind};

/// Whether the reply to this request is in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Simple,
    Structured,
}

fn simple(out: &mut BytesMut, cookie: u64, error: u32) {
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error);
    out.put_u64(cookie);
}

/// The header of a last chunk.
fn last_chunk(out: &mut BytesMut, cookie: u64, kind: u16, len: usize) {
    out.put_u32(STRUCTURED_REPLY_MAGIC);
    out.put_u16(chunk::DONE);
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(model::u32_of(len));
}

/// Success without data.
pub fn done(out: &mut BytesMut, cookie: u64, form: Form) {
    match form {
        Form::Simple => simple(out, cookie, 0),
        Form::Structured => last_chunk(out, cookie, chunk::NONE, 0),
    }
}

/// A failed request.
pub fn error(out: &mut BytesMut, cookie: u64, form: Form, errno: Errno) {
    match form {
        Form::Simple => simple(out, cookie, errno.number()),
        Form::Structured => {
            last_chunk(out, cookie, chunk::ERROR, 6);
            out.put_u32(errno.number());
            out.put_u16(0);
        }
    }
}

/// What stands before the data of a read; exactly `len` bytes must follow.
pub fn data_header(out: &mut BytesMut, cookie: u64, form: Form, offset: u64, len: usize) {
    match form {
        Form::Simple => simple(out, cookie, 0),
        Form::Structured => {
            last_chunk(out, cookie, chunk::OFFSET_DATA, 8 + len);
            out.put_u64(offset);
        }
    }
}

/// The answer to a block status request of `asked` bytes. Neighbours of one kind are joined, nothing goes beyond what
/// was asked, and at most `max` extents are told. The router's answer must not be empty.
pub fn block_status(out: &mut BytesMut, cookie: u64, asked: u32, extents: &[Extent], max: usize) {
    let mut told: Vec<(u32, u32)> = Vec::new();
    let mut left = asked;
    for extent in extents {
        let len = u32::try_from(extent.len).unwrap_or(u32::MAX).min(left);
        let flags = match extent.kind {
            ExtentKind::Data => 0,
            ExtentKind::Hole => extent_flag::HOLE | extent_flag::ZERO,
        };
        let count = told.len();
        match told.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.1 == flags => last.0 += len,
            _ if count == max => break,
            _ => told.push((len, flags)),
        }
        left -= len;
    }
    if told.is_empty() {
        error(out, cookie, Form::Structured, Errno::Io);
        return;
    }
    last_chunk(out, cookie, chunk::BLOCK_STATUS, 4 + 8 * told.len());
    out.put_u32(BASE_ALLOCATION_ID);
    for (len, flags) in told {
        out.put_u32(len);
        out.put_u32(flags);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
        let mut out = BytesMut::new();
        write(&mut out);
        out.to_vec()
    }

    #[test]
    fn replies_have_the_bytes_of_the_protocol() {
        let cookie = 0x0102_0304_0506_0708;
        assert_eq!(
            bytes(|out| done(out, cookie, Form::Simple)),
            b"\x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08"
        );
        assert_eq!(
            bytes(|out| error(out, cookie, Form::Simple, Errno::NoSpace)),
            b"\x67\x44\x66\x98\0\0\0\x1c\x01\x02\x03\x04\x05\x06\x07\x08"
        );
        assert_eq!(
            bytes(|out| error(out, cookie, Form::Structured, Errno::Io)),
            b"\x66\x8e\x33\xef\0\x01\x80\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x06\0\0\0\x05\0\0"
        );
        assert_eq!(
            bytes(|out| data_header(out, cookie, Form::Structured, 9, 512)),
            b"\x66\x8e\x33\xef\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\x02\x08\0\0\0\0\0\0\0\x09"
        );
    }

    #[test]
    fn extents_are_joined_clipped_and_counted() {
        let extent = |len, kind| Extent { len, kind };
        let list = [
            extent(10, ExtentKind::Hole),
            extent(20, ExtentKind::Hole),
            extent(5, ExtentKind::Data),
            extent(u64::MAX, ExtentKind::Hole),
        ];
        let told = |asked, max| {
            let all = bytes(|out| block_status(out, 1, asked, &list, max));
            all[24..].chunks(8).map(|c| (c[3], c[7])).collect::<Vec<_>>()
        };
        assert_eq!(told(100, 10), [(30, 3), (5, 0), (65, 3)]);
        assert_eq!(told(100, 1), [(30, 3)]);
        assert_eq!(told(7, 10), [(7, 3)]);
        let none = bytes(|out| block_status(out, 1, 100, &[], 10));
        assert_eq!(none[6..8], [0x80, 1], "an empty answer is an error, not a protocol violation");
    }
}
