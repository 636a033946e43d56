//! Files that are encrypted with a tenant's data key, written and read as streams.
//!
//! ```text
//! magic, nonce, file key (wrapped with the data key), chunk, chunk, …, last chunk
//! ```
//!
//! Each file has a random key of its own, so the chunks' nonces, which count, are never used twice with one key. A
//! nonce also says whether its chunk is the last: a file that was cut off, or whose chunks were moved, does not open.
//! Every part is bound to the file's identity, so that one file cannot be put in the place of another.

use std::io::{self, ErrorKind, Read, Write};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::credentials::random;
use crate::data_keys::DataKey;

const MAGIC: &[u8; 8] = b"lwseal01";
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// What is encrypted at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// Encrypts what is written to it. Without [`Sealer::finish`] the file does not open.
pub struct Sealer<W> {
    out: W,
    chunks: Chunks,
    buffer: Vec<u8>,
}

/// The file's key, and which chunk is next.
struct Chunks {
    key: LessSafeKey,
    identity: Vec<u8>,
    next: u64,
}

impl Chunks {
    fn new(key: &[u8; KEY_BYTES], identity: &str) -> io::Result<Self> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| io::Error::other("make a file's key"))?;
        Ok(Self { key: LessSafeKey::new(key), identity: bound_to(identity), next: 0 })
    }

    /// The nonce of the next chunk; the key is used with each once.
    fn nonce(&mut self, last: bool) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[0] = u8::from(last);
        nonce[NONCE_LEN - 8..].copy_from_slice(&self.next.to_be_bytes());
        self.next += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

fn bound_to(identity: &str) -> Vec<u8> {
    [MAGIC.as_slice(), identity.as_bytes()].concat()
}

fn damaged() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "the sealed file is damaged, or it is not this key's")
}

impl<W: Write> Sealer<W> {
    /// Begins a file. `identity` says which one it is; it opens under the same only.
    pub fn new(mut out: W, key: &DataKey, identity: &str) -> io::Result<Self> {
        let file_key = random::<KEY_BYTES>();
        let nonce = random::<NONCE_LEN>();
        let mut wrapped = file_key.to_vec();
        key.aead()
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(bound_to(identity)),
                &mut wrapped,
            )
            .map_err(|_| io::Error::other("wrap a file's key"))?;
        for part in [MAGIC.as_slice(), &nonce, &wrapped] {
            out.write_all(part)?;
        }
        Ok(Self { out, chunks: Chunks::new(&file_key, identity)?, buffer: Vec::with_capacity(CHUNK_BYTES) })
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let nonce = self.chunks.nonce(last);
        let identity = Aad::from(&self.chunks.identity);
        self.chunks
            .key
            .seal_in_place_append_tag(nonce, identity, &mut self.buffer)
            .map_err(|_| io::Error::other("encrypt a chunk"))?;
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Writes the last chunk, with which the file is whole.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk is sealed when something follows it: only then is it known not to be the last.
        if self.buffer.len() == CHUNK_BYTES && !bytes.is_empty() {
            self.seal(false)?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Decrypts a sealed file as it is read. Nothing is given out that was not checked.
pub struct Opener<R> {
    from: R,
    chunks: Chunks,
    /// The chunk after the one that is given out, still encrypted; empty at the end.
    ahead: Vec<u8>,
    open: Vec<u8>,
    given: usize,
}

impl<R: Read> Opener<R> {
    pub fn new(mut from: R, key: &DataKey, identity: &str) -> io::Result<Self> {
        let mut header = [0; MAGIC.len() + NONCE_LEN + KEY_BYTES + TAG_BYTES];
        from.read_exact(&mut header).map_err(|_| damaged())?;
        let (magic, rest) = header.split_at_mut(MAGIC.len());
        let (nonce, wrapped) = rest.split_at_mut(NONCE_LEN);
        if magic != MAGIC {
            return Err(damaged());
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let file_key =
            key.aead().open_in_place(nonce, Aad::from(bound_to(identity)), wrapped).map_err(|_| damaged())?;
        let file_key: [u8; KEY_BYTES] = (&*file_key).try_into().map_err(|_| damaged())?;
        let ahead = read_chunk(&mut from)?;
        if ahead.is_empty() {
            return Err(damaged());
        }
        let chunks = Chunks::new(&file_key, identity)?;
        Ok(Self { from, chunks, ahead, open: Vec::new(), given: 0 })
    }

    /// Decrypts the next chunk. `Ok(false)`: the last one was given out.
    fn advance(&mut self) -> io::Result<bool> {
        if self.ahead.is_empty() {
            return Ok(false);
        }
        let mut chunk = std::mem::replace(&mut self.ahead, read_chunk(&mut self.from)?);
        let nonce = self.chunks.nonce(self.ahead.is_empty());
        let identity = Aad::from(&self.chunks.identity);
        let bytes = self.chunks.key.open_in_place(nonce, identity, &mut chunk).map_err(|_| damaged())?.len();
        chunk.truncate(bytes);
        (self.open, self.given) = (chunk, 0);
        Ok(true)
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.given == self.open.len() {
            if !self.advance()? {
                return Ok(0);
            }
        }
        let count = into.len().min(self.open.len() - self.given);
        into[..count].copy_from_slice(&self.open[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}

/// A whole encrypted chunk, or what there is of it at the end of the file.
fn read_chunk(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES + TAG_BYTES);
    let bytes = u64::try_from(CHUNK_BYTES + TAG_BYTES).unwrap_or(u64::MAX);
    from.take(bytes).read_to_end(&mut chunk)?;
    Ok(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> DataKey {
        DataKey::from_bytes(&random::<KEY_BYTES>()).unwrap()
    }

    fn seal(key: &DataKey, identity: &str, content: &[u8]) -> Vec<u8> {
        let mut sealer = Sealer::new(Vec::new(), key, identity).unwrap();
        sealer.write_all(content).unwrap();
        sealer.finish().unwrap()
    }

    fn open(key: &DataKey, identity: &str, sealed: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        Opener::new(sealed, key, identity)?.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn what_was_sealed_opens_whatever_its_length() {
        let key = key();
        for bytes in
            [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 7]
        {
            let content: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
            let sealed = seal(&key, "a", &content);
            assert!(bytes < 16 || !sealed.windows(16).any(|window| content.starts_with(window)));
            assert_eq!(open(&key, "a", &sealed).unwrap(), content, "{bytes} bytes");
        }
    }

    #[test]
    fn it_opens_with_its_key_and_under_its_identity_only() {
        let mine = key();
        let sealed = seal(&mine, "export 1", b"content");
        assert!(open(&mine, "export 2", &sealed).is_err());
        assert!(open(&key(), "export 1", &sealed).is_err());
    }

    #[test]
    fn what_was_cut_off_changed_or_moved_does_not_open() {
        let key = key();
        let content = vec![7; 3 * CHUNK_BYTES];
        let sealed = seal(&key, "a", &content);
        let header = MAGIC.len() + NONCE_LEN + KEY_BYTES + TAG_BYTES;
        let chunk = CHUNK_BYTES + TAG_BYTES;
        for end in
            [0, 7, header - 1, header, header + 1, header + chunk, header + 2 * chunk, sealed.len() - 1]
        {
            assert!(open(&key, "a", &sealed[..end]).is_err(), "cut at {end}");
        }
        for place in [0, MAGIC.len(), header - 1, header, header + chunk, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert!(open(&key, "a", &changed).is_err(), "changed at {place}");
        }
        let mut moved = sealed.clone();
        moved[header..header + 2 * chunk].rotate_left(chunk);
        assert!(open(&key, "a", &moved).is_err(), "two chunks exchanged");
        let longer = [&sealed[..], &sealed[header..header + chunk]].concat();
        assert!(open(&key, "a", &longer).is_err(), "a chunk added");
    }

    #[test]
    fn no_two_files_have_the_same_bytes() {
        let key = key();
        assert_ne!(seal(&key, "a", b"content"), seal(&key, "a", b"content"));
    }
}
