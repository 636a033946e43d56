//! Nobody may disagree with us about where a request ends.
//!
//! hyper settles ambiguous framing as the standard allows: `Transfer-Encoding` wins over `Content-Length`, equal
//! lengths become one, a lone line feed ends a line. Its user never learns that there was a doubt. A gateway for many
//! tenants has no use for such requests, so this layer reads every head before hyper does and hands over only those
//! that can be read in one way. In the place of any other it hands over bytes that hyper answers with 400 and a
//! closed connection.
//!
//! To find the next head it follows `Content-Length`. Behind a chunked body or an offer to upgrade it would have to
//! read more than heads, so such a request is the last on its connection: [`is_last`] tells `proxy`, which answers it
//! with `Connection: close`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::HeaderMap;
use http::header::{TRANSFER_ENCODING, UPGRADE};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// A longer head is refused with 431, by hyper, whose buffer has the same limit.
pub(crate) const HEAD_SIZE_MAX: usize = 32 * 1024;

/// A longer body is announced by nobody who means well: a petabyte.
const BODY_SIZE_MAX: u64 = 1 << 50;

/// How long a connection that we close is still read, so that the client can read our last answer. Closing with
/// unread bytes would make the kernel take that answer back.
const LINGER: Duration = Duration::from_secs(1);

const READ_SIZE: usize = 8 * 1024;

/// What hyper is given in the place of a refused head. No method begins with a NUL.
const POISON: &[u8] = b"\0\r\n\r\n";

/// A client's connection, of which only unambiguous heads can be read.
pub(crate) struct StrictHeads<T> {
    inner: T,
    /// Read from `inner` and not yet handed over.
    buffer: Vec<u8>,
    /// So many bytes at the front of `buffer` have been looked at.
    seen: usize,
    state: State,
    at_end: bool,
    linger: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Collecting a head.
    Head,
    /// Handing over so many bytes, which are a head that was found good or a body; then comes `Head`.
    Pass(u64),
    /// Handing over everything that comes.
    PassAll,
    /// Handing over nothing any more.
    Refused,
}

/// What follows a head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Follows {
    Body(u64),
    Rest,
}

/// Whether nothing more is read from a connection after a request with these headers.
pub(crate) fn is_last(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING) || headers.contains_key(UPGRADE)
}

impl<T> StrictHeads<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, buffer: Vec::new(), seen: 0, state: State::Head, at_end: false, linger: None }
    }

    /// Looks at what is in the buffer and decides what may be handed over, if that can be decided.
    fn look_for_head(&mut self) {
        let empty_lines = self.buffer.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.buffer.drain(..empty_lines);
        let from = self.seen.saturating_sub(3);
        let end =
            self.buffer[from..].windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|at| from + at + 4);
        self.seen = self.buffer.len();
        let head = &self.buffer[..end.unwrap_or(self.seen)];
        self.state = match end {
            // A lone line feed may be the end of a head for others, so waiting for more would be waiting in vain.
            None if !lines_end_well(head) => State::Refused,
            None if head.len() > HEAD_SIZE_MAX || self.at_end => State::PassAll,
            None => return,
            Some(end) => match follows(head) {
                Some(Follows::Body(length)) => State::Pass(end as u64 + length),
                Some(Follows::Rest) => State::PassAll,
                None => State::Refused,
            },
        };
        self.seen = 0;
        if self.state == State::Refused {
            self.buffer = POISON.to_vec();
        }
    }

    /// Hands over what is in the buffer, at most so many bytes.
    fn hand_over(&mut self, out: &mut ReadBuf<'_>, limit: usize) -> usize {
        let length = self.buffer.len().min(limit).min(out.remaining());
        out.put_slice(&self.buffer[..length]);
        self.buffer.drain(..length);
        if self.buffer.is_empty() {
            self.buffer = Vec::new(); // an idle connection keeps no memory
        }
        length
    }
}

impl<T: AsyncRead + Unpin> StrictHeads<T> {
    fn poll_read_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let length = self.buffer.len();
        self.buffer.resize(length + READ_SIZE, 0);
        let mut more = ReadBuf::new(&mut self.buffer[length..]);
        let read = Pin::new(&mut self.inner).poll_read(cx, &mut more);
        let added = more.filled().len();
        self.buffer.truncate(length + added);
        if self.buffer.is_empty() {
            self.buffer = Vec::new();
        }
        ready!(read)?;
        self.at_end |= added == 0;
        Poll::Ready(Ok(()))
    }

    /// Reads into `out`, at most so many bytes, first from the buffer.
    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        if !self.buffer.is_empty() {
            return Poll::Ready(Ok(self.hand_over(out, limit)));
        }
        let before = out.filled().len();
        if limit >= out.remaining() {
            ready!(Pin::new(&mut self.inner).poll_read(cx, out))?;
        } else {
            let mut limited = ReadBuf::new(out.initialize_unfilled_to(limit));
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut limited))?;
            let length = limited.filled().len();
            out.advance(length);
        }
        let length = out.filled().len() - before;
        self.at_end |= length == 0;
        Poll::Ready(Ok(length))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for StrictHeads<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match this.state {
                State::Head => {
                    this.look_for_head();
                    if this.state == State::Head {
                        ready!(this.poll_read_more(cx))?;
                    }
                }
                State::Pass(0) => this.state = State::Head,
                State::Pass(left) => {
                    let limit = usize::try_from(left).unwrap_or(usize::MAX);
                    let passed = ready!(this.poll_pass(cx, out, limit))?;
                    this.state = State::Pass(left - passed as u64);
                    return Poll::Ready(Ok(()));
                }
                State::PassAll => return this.poll_pass(cx, out, usize::MAX).map_ok(|_| ()),
                State::Refused => {
                    this.hand_over(out, usize::MAX);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for StrictHeads<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// Ends our side, then waits a moment for the client to end its own.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        let linger = this.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut discarded = [0; 4096];
        while !this.at_end && linger.as_mut().poll(cx).is_pending() {
            let mut discarded = ReadBuf::new(&mut discarded);
            this.at_end = match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut discarded)) {
                Ok(()) => discarded.filled().is_empty(),
                Err(_) => true,
            };
        }
        Poll::Ready(Ok(()))
    }
}

/// Every line ends with CR LF, and neither of the two is found elsewhere. A CR at the very end may still get its LF.
fn lines_end_well(head: &[u8]) -> bool {
    let lone_return = head.windows(2).any(|pair| pair[0] == b'\r' && pair[1] != b'\n');
    let lone_feed = head.windows(2).any(|pair| pair[0] != b'\r' && pair[1] == b'\n');
    !lone_return && !lone_feed
}

/// What follows a whole head, or `None` when there is more than one answer.
fn follows(head: &[u8]) -> Option<Follows> {
    lines_end_well(head).then_some(())?;
    let text = head.strip_suffix(b"\r\n\r\n")?;
    let mut lines = text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let request_line = lines.next()?;
    let is_1_1 = request_line.ends_with(b" HTTP/1.1");
    (is_1_1 || request_line.ends_with(b" HTTP/1.0")).then_some(())?;

    let mut length: Option<u64> = None;
    let mut chunked = false;
    let mut rest = request_line.starts_with(b"CONNECT ");
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        // Also refuses a folded line, which begins with a space, and a space before the colon.
        (!name.is_empty() && name.iter().all(u8::is_ascii_graphic)).then_some(())?;
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let number = digits.then(|| std::str::from_utf8(value).ok()?.parse::<u64>().ok()).flatten()?;
            length.is_none().then_some(())?;
            length = Some(number);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            (is_1_1 && !chunked && value.eq_ignore_ascii_case(b"chunked")).then_some(())?;
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            rest = true;
        }
    }
    match (chunked, length.unwrap_or(0)) {
        (true, _) if length.is_some() => None,
        (true, _) => Some(Follows::Rest),
        _ if rest => Some(Follows::Rest),
        (false, length) => (length <= BODY_SIZE_MAX).then_some(Follows::Body(length)),
    }
}

/// Without the white space that may stand around a value: spaces and tabs, nothing else.
fn trim(value: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    &value[start..end]
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What hyper would read if a client sent these pieces, one after the other, and ended.
    async fn handed_over(pieces: &[&[u8]]) -> Vec<u8> {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let mut strict = StrictHeads::new(server);
        let mut read = Vec::new();
        let send = async {
            for piece in pieces {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        let (_, received) = tokio::join!(send, strict.read_to_end(&mut read));
        received.unwrap();
        read
    }

    const TWO: &[u8] =
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbodyGET /b HTTP/1.1\r\nHost: b\r\n\r\n";

    #[tokio::test]
    async fn good_requests_pass_unchanged_however_they_are_cut() {
        assert_eq!(handed_over(&[TWO]).await, TWO);
        for at in 1..TWO.len() {
            assert_eq!(handed_over(&[&TWO[..at], &TWO[at..]]).await, TWO, "cut at {at}");
        }
        let bytes: Vec<&[u8]> = TWO.chunks(1).collect();
        assert_eq!(handed_over(&bytes).await, TWO);
    }

    #[tokio::test]
    async fn a_doubtful_head_is_never_handed_over_not_even_as_the_second() {
        let doubtful: &[u8] = b"GET /b HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n";
        let good: &[u8] = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
        assert_eq!(handed_over(&[doubtful]).await, POISON);
        assert_eq!(handed_over(&[good, doubtful]).await, [good, POISON].concat());
    }

    #[test]
    fn a_head_says_in_one_way_what_follows_it() {
        let what = |lines: &str| follows(format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").as_bytes());
        assert_eq!(what(""), Some(Follows::Body(0)));
        assert_eq!(what("content-LENGTH:  12 \r\n"), Some(Follows::Body(12)));
        assert_eq!(what("Transfer-Encoding: Chunked\r\n"), Some(Follows::Rest));
        assert_eq!(what("Upgrade: websocket\r\n"), Some(Follows::Rest));
        for doubtful in [
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 0x1\r\n",
            "Content-Length:\r\n",
            "Content-Length : 1\r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Content-Length: 18446744073709551615\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
            "Transfer-Encoding:\r\n chunked\r\n",
            "X: 1\r\n folded\r\n",
            " X: 1\r\n",
            "no colon\r\n",
            ": no name\r\n",
            "X: 1\n",
            "X: 1\rY: 2\r\n",
        ] {
            assert_eq!(what(doubtful), None, "{doubtful:?}");
        }
        assert_eq!(follows(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), None);
        for version in ["HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "http/1.1", ""] {
            assert_eq!(follows(format!("GET / {version}\r\nHost: a\r\n\r\n").as_bytes()), None, "{version}");
        }
    }
}
