//! Frames for stdin that crosses a connection which cannot close one direction alone.
//!
//! Owns: their format. Does not own: the connection. A frame is its length as four bytes in network order, then
//! so many bytes; a frame of no bytes is the end. Kubernetes before 1.29 (websocket protocols before v5) has no
//! other way to say "that was all" and still listen.

use std::io::{self, Read, Write};

/// Bytes of a frame's head.
const HEAD: usize = 4;

/// No frame is longer; guards against allocating what something that is no frame says.
const LONGEST: usize = 16 << 20;

/// The frame that says "that was all".
pub(super) const END: [u8; HEAD] = [0; HEAD];

/// A frame with these bytes, at least one.
pub(super) fn frame(bytes: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(HEAD + bytes.len());
    framed.extend((bytes.len() as u32).to_be_bytes());
    framed.extend(bytes);
    framed
}

/// Takes bytes out of frames until the end frame, or the end of the input: a connection that broke is an end too.
///
/// # Errors
/// The input cannot be read, or holds something that is no frame; the output cannot be written.
pub fn unframe(mut input: impl Read, mut output: impl Write) -> io::Result<()> {
    let mut head = [0; HEAD];
    while read_whole(&mut input, &mut head)? {
        let length = u32::from_be_bytes(head) as usize;
        if length == 0 {
            return Ok(());
        }
        if length > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not a stream of frames"));
        }
        let mut bytes = vec![0; length];
        if !read_whole(&mut input, &mut bytes)? {
            return Ok(());
        }
        output.write_all(&bytes)?;
        output.flush()?;
    }
    Ok(())
}

/// Fills the buffer; `false` when the input ends before.
fn read_whole(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match input.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_of_frames_as_they_went_in() {
        let mut stream = frame(b"one ");
        stream.extend(frame(&[0, 255, b'\n']));
        stream.extend(END);
        stream.extend(b"what follows the end is nobody's");
        let mut out = Vec::new();
        unframe(stream.as_slice(), &mut out).unwrap();
        assert_eq!(out, b"one \x00\xff\n");
    }

    #[test]
    fn a_connection_that_broke_is_an_end() {
        for cut in 0..7 {
            let mut out = Vec::new();
            unframe(&frame(b"four")[..cut], &mut out).unwrap();
            assert!(out.is_empty(), "{cut}");
        }
    }

    #[test]
    fn something_else_is_refused() {
        let error = unframe(&b"GET / HTTP/1.1\r\n"[..], Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
