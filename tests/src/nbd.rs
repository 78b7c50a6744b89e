//! A small pipelining NBD client of our own, so that the verifying load owes nothing to the code under test.
//!
//! Fixed newstyle, `OPT_GO`, simple replies. A thread per connection reads replies into a bounded channel, so a
//! submitter never deadlocks with a server that won't read before it has written.
//!
//! Invariant: each submitted request completes exactly once, or the connection is reported as lost.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

const GREETING: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const FLAG_FUA: u16 = 1;
/// No reply of a server is longer; a larger length is nonsense on the wire.
const OPTION_REPLY_MAX: u32 = 64 << 10;
const SOCKET_TIMEOUT: Duration = Duration::from_secs(30);

/// Requests in flight on one connection.
pub const DEPTH_MAX: usize = 256;

/// Where an export is: `nbd://127.0.0.1:10809/demo` or `nbd+unix:///demo?socket=/run/nbd.sock`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub address: Address,
    pub export: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp(String),
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(uri: &str) -> anyhow::Result<Self> {
        if let Some(rest) = uri.strip_prefix("nbd://") {
            let (address, export) = rest.split_once('/').unwrap_or((rest, ""));
            return Ok(Self { address: Address::Tcp(address.into()), export: export.into() });
        }
        let rest = uri.strip_prefix("nbd+unix:///").context("not an NBD URI")?;
        let (export, socket) = rest.split_once("?socket=").context("URI without ?socket=")?;
        Ok(Self { address: Address::Unix(socket.into()), export: export.into() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp(address) => write!(f, "nbd://{address}/{}", self.export),
            Address::Unix(path) => {
                write!(f, "nbd+unix:///{}?socket={}", self.export, path.display())
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Command {
    Read,
    Write,
    WriteFua,
    Flush,
    Trim,
    WriteZeroes,
}

impl Command {
    fn code(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write | Self::WriteFua => 1,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::WriteZeroes => 6,
        }
    }

    fn flags(self) -> u16 {
        if self == Self::WriteFua { FLAG_FUA } else { 0 }
    }
}

/// One request; `data` is empty but for writes.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    pub cookie: u64,
    pub command: Command,
    pub offset: u64,
    pub len: u32,
    pub data: &'a [u8],
}

/// The answer to one request: the bytes of a read, or the server's error number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    pub cookie: u64,
    pub result: Result<Vec<u8>, u32>,
}

/// Why no completion came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Silence {
    /// Nothing within the given time; the connection stands.
    TimedOut,
    /// The connection is gone, for this reason.
    Lost(String),
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Address::Unix(path) => Ok(Self::Unix(UnixStream::connect(path)?)),
        }
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
            Self::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(timeout),
            Self::Unix(stream) => stream.set_write_timeout(timeout),
        }
    }

    fn shutdown(&self) {
        // Fails only when the peer was faster.
        let _already_closed = match self {
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many bytes the reply to each outstanding request carries.
type Outstanding = Arc<Mutex<BTreeMap<u64, usize>>>;

/// One connection to one export.
pub struct Connection {
    socket: Socket,
    size: u64,
    flags: u16,
    outstanding: Outstanding,
    completions: Receiver<Result<Completion, String>>,
    reader: Option<thread::JoinHandle<()>>,
    next_cookie: u64,
}

impl Connection {
    pub fn open(target: &Target) -> anyhow::Result<Self> {
        let mut socket =
            Socket::connect(&target.address).with_context(|| format!("connect to {target}"))?;
        socket.set_read_timeout(Some(SOCKET_TIMEOUT))?;
        socket.set_write_timeout(Some(SOCKET_TIMEOUT))?;
        let (size, flags) =
            negotiate(&mut socket, &target.export).with_context(|| format!("open {target}"))?;
        socket.set_read_timeout(None)?;
        // A stuck server may delay a write for long without being wrong (back-pressure); a reply's absence is judged
        // by whoever waits for it.
        socket.set_write_timeout(None)?;
        let outstanding = Outstanding::default();
        let (sender, completions) = sync_channel(DEPTH_MAX);
        let reader = thread::spawn({
            let (socket, outstanding) = (socket.try_clone()?, Arc::clone(&outstanding));
            move || read_replies(socket, &outstanding, &sender)
        });
        let reader = Some(reader);
        Ok(Self { socket, size, flags, outstanding, completions, reader, next_cookie: 1 << 63 })
    }

    /// Tries again until it works or the time is up: for servers that are being started.
    pub fn open_within(target: &Target, limit: Duration) -> anyhow::Result<Self> {
        let deadline = Instant::now() + limit;
        loop {
            match Self::open(target) {
                Ok(connection) => return Ok(connection),
                Err(error) if deadline <= Instant::now() => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Bytes of the export.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The transmission flags the server announced.
    #[must_use]
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Sends a request; its completion comes by [`Connection::next`].
    ///
    /// # Errors
    /// When the connection is gone. The request may have been carried out all the same.
    pub fn submit(&mut self, request: &Request<'_>) -> io::Result<()> {
        let Request { cookie, command, offset, len, data } = *request;
        let reply_len = if command == Command::Read { len as usize } else { 0 };
        {
            let mut outstanding = self.outstanding.lock().expect("no holder panics");
            assert!(outstanding.len() < DEPTH_MAX, "more requests than the reply channel holds");
            let previous = outstanding.insert(cookie, reply_len);
            assert!(previous.is_none(), "cookies are unique among what is outstanding");
        }
        let mut message = Vec::with_capacity(28 + data.len());
        message.extend_from_slice(&REQUEST.to_be_bytes());
        message.extend_from_slice(&command.flags().to_be_bytes());
        message.extend_from_slice(&command.code().to_be_bytes());
        message.extend_from_slice(&cookie.to_be_bytes());
        message.extend_from_slice(&offset.to_be_bytes());
        message.extend_from_slice(&len.to_be_bytes());
        message.extend_from_slice(data);
        self.socket.write_all(&message)
    }

    /// The next completion, in whatever order the server answers.
    pub fn next(&mut self, limit: Duration) -> Result<Completion, Silence> {
        match self.completions.recv_timeout(limit) {
            Ok(Ok(completion)) => Ok(completion),
            Ok(Err(reason)) => Err(Silence::Lost(reason)),
            Err(RecvTimeoutError::Timeout) => Err(Silence::TimedOut),
            Err(RecvTimeoutError::Disconnected) => Err(Silence::Lost("closed".into())),
        }
    }

    /// One request and its answer; only with nothing else outstanding.
    pub fn call(
        &mut self,
        command: Command,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> anyhow::Result<Vec<u8>> {
        self.next_cookie += 1;
        let cookie = self.next_cookie;
        self.submit(&Request { cookie, command, offset, len, data })?;
        match self.next(Duration::from_secs(180)) {
            Ok(Completion { cookie: answered, result }) => {
                ensure!(answered == cookie, "reply to another request");
                result.map_err(|errno| anyhow::anyhow!("{command:?} at {offset}: error {errno}"))
            }
            Err(silence) => bail!("{command:?} at {offset}: {silence:?}"),
        }
    }

    pub fn read(&mut self, offset: u64, len: u32) -> anyhow::Result<Vec<u8>> {
        self.call(Command::Read, offset, len, &[])
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> anyhow::Result<()> {
        self.call(Command::Write, offset, u32::try_from(data.len())?, data).map(drop)
    }

    pub fn flush(&mut self) -> anyhow::Result<()> {
        self.call(Command::Flush, 0, 0, &[]).map(drop)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.socket.shutdown();
        if let Some(reader) = self.reader.take() {
            // Takes what it still wants to hand over, so that it ends; then the channel is closed.
            while self.completions.recv().is_ok() {}
            let _panicked = reader.join();
        }
    }
}

fn read_replies(
    socket: Socket,
    outstanding: &Outstanding,
    sender: &SyncSender<Result<Completion, String>>,
) {
    let mut reader = BufReader::with_capacity(256 << 10, socket);
    loop {
        let reply = read_reply(&mut reader, outstanding);
        let ended = reply.is_err();
        if sender.send(reply).is_err() || ended {
            return;
        }
    }
}

fn read_reply(reader: &mut impl Read, outstanding: &Outstanding) -> Result<Completion, String> {
    let mut header = [0; 16];
    reader.read_exact(&mut header).map_err(|error| error.to_string())?;
    let magic = u32::from_be_bytes(header[..4].try_into().expect("4 bytes"));
    let errno = u32::from_be_bytes(header[4..8].try_into().expect("4 bytes"));
    let cookie = u64::from_be_bytes(header[8..].try_into().expect("8 bytes"));
    if magic != SIMPLE_REPLY {
        return Err(format!("reply with magic {magic:#x}"));
    }
    let Some(len) = outstanding.lock().expect("no holder panics").remove(&cookie) else {
        return Err(format!("reply to request {cookie}, which is not outstanding"));
    };
    if errno != 0 {
        return Ok(Completion { cookie, result: Err(errno) });
    }
    let mut data = vec![0; len];
    reader.read_exact(&mut data).map_err(|error| error.to_string())?;
    Ok(Completion { cookie, result: Ok(data) })
}

/// Size and transmission flags of the export.
fn negotiate(socket: &mut Socket, export: &str) -> anyhow::Result<(u64, u16)> {
    ensure!(read_u64(socket)? == GREETING, "the server is no NBD server");
    ensure!(read_u64(socket)? == OPTION, "the server speaks oldstyle");
    let offered = read_u16(socket)?;
    ensure!(offered & 0b11 == 0b11, "the server lacks fixed newstyle or no-zeroes");
    let mut message = 3_u32.to_be_bytes().to_vec();
    let name_len = u32::try_from(export.len())?;
    message.extend_from_slice(&OPTION.to_be_bytes());
    message.extend_from_slice(&OPT_GO.to_be_bytes());
    message.extend_from_slice(&(name_len + 6).to_be_bytes());
    message.extend_from_slice(&name_len.to_be_bytes());
    message.extend_from_slice(export.as_bytes());
    message.extend_from_slice(&0_u16.to_be_bytes());
    socket.write_all(&message)?;
    let mut found = None;
    loop {
        ensure!(read_u64(socket)? == OPTION_REPLY, "bad magic of an option reply");
        ensure!(read_u32(socket)? == OPT_GO, "reply to an option that was not sent");
        let kind = read_u32(socket)?;
        let len = read_u32(socket)?;
        ensure!(len <= OPTION_REPLY_MAX, "option reply of {len} bytes");
        let mut data = vec![0; len as usize];
        socket.read_exact(&mut data)?;
        match kind {
            REP_ACK => return found.context("no export information before the acknowledgement"),
            REP_INFO if data.len() == 12 && data[..2] == INFO_EXPORT.to_be_bytes() => {
                let size = u64::from_be_bytes(data[2..10].try_into()?);
                found = Some((size, u16::from_be_bytes(data[10..12].try_into()?)));
            }
            REP_INFO => {}
            error => bail!("refused ({error:#x}): {}", String::from_utf8_lossy(&data)),
        }
    }
}

fn read_u64(socket: &mut Socket) -> io::Result<u64> {
    let mut bytes = [0; 8];
    socket.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

fn read_u32(socket: &mut Socket) -> io::Result<u32> {
    let mut bytes = [0; 4];
    socket.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u16(socket: &mut Socket) -> io::Result<u16> {
    let mut bytes = [0; 2];
    socket.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_read_and_written() {
        for uri in ["nbd://127.0.0.1:10809/demo", "nbd+unix:///demo?socket=/tmp/a.sock"] {
            assert_eq!(uri.parse::<Target>().unwrap().to_string(), uri);
        }
        assert!("http://x".parse::<Target>().is_err());
        assert!("nbd+unix:///demo".parse::<Target>().is_err());
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error_that_names_it() {
        let target: Target = "nbd+unix:///demo?socket=/nonexistent/socket".parse().unwrap();
        let error = Connection::open_within(&target, Duration::ZERO).err().unwrap();
        assert!(format!("{error:#}").contains("/nonexistent/socket"), "{error:#}");
    }
}
