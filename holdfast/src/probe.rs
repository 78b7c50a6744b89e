//! A small NBD client that proves that I/O works: fixed newstyle handshake, GO, one read. Independent of the edge's own
//! code on purpose, or a mistake in shared constants would confirm itself.
//!
//! It writes nothing, so it may be run against a vDisk in use.

use runtime::endpoint::Endpoint;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

const GREETING: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Client flags: fixed newstyle, no zeroes.
const CLIENT_FLAGS: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_IS_ERROR: u32 = 1 << 31;
const ERROR_UNKNOWN: u32 = REPLY_IS_ERROR | 6;
const INFO_EXPORT: u16 = 0;
const COMMAND_READ: u16 = 0;
const COMMAND_DISCONNECT: u16 = 2;
/// A server that says more than this before it acknowledges isn't one.
const REPLIES_MAX: usize = 64;
const REPLY_LEN_MAX: u32 = 64 << 10;
/// What is read: one cluster.
pub const PROBE_LEN: u32 = 4096;

/// Why I/O isn't shown to work.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("no connection: {0}")]
    Io(#[from] std::io::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("that isn't an NBD server: {0}")]
    NotNbd(String),
    #[error("there is no export of that name")]
    NoExport,
    #[error("the server refused the export: {0}")]
    Refused(String),
    #[error("reading failed with NBD error {0}")]
    Read(u32),
}

/// What the server said and gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    pub size_bytes: u64,
    pub flags: u16,
    /// Bytes that a read at offset 0 returned.
    pub read: u32,
}

/// Connects, opens the export, reads its first cluster.
///
/// # Errors
/// When any of that fails or takes longer than `limit`.
pub async fn probe(
    endpoint: &Endpoint,
    export: &str,
    limit: Duration,
) -> Result<Probed, ProbeError> {
    let attempt = async {
        match endpoint {
            Endpoint::Tcp(address) | Endpoint::Tls(address) => {
                exchange(&mut TcpStream::connect(address).await?, export).await
            }
            Endpoint::Unix(path) => exchange(&mut UnixStream::connect(path).await?, export).await,
        }
    };
    tokio::time::timeout(limit, attempt).await.map_err(|_| ProbeError::Timeout(limit))?
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    export: &str,
) -> Result<Probed, ProbeError> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await?;
    if greeting[..8] != *GREETING || greeting[8..16] != *OPTION_MAGIC || greeting[17] & 1 == 0 {
        return Err(ProbeError::NotNbd("no fixed-newstyle greeting".into()));
    }
    stream.write_all(&open_bytes(export)).await?;
    let (size_bytes, flags) = read_go_replies(stream).await?;
    let read = u32::try_from(size_bytes.min(PROBE_LEN.into())).unwrap_or(PROBE_LEN);
    stream.write_all(&request_bytes(COMMAND_READ, 1, read)).await?;
    let magic = stream.read_u32().await?;
    let error = stream.read_u32().await?;
    let cookie = stream.read_u64().await?;
    if magic != SIMPLE_REPLY_MAGIC || cookie != 1 {
        return Err(ProbeError::NotNbd(format!(
            "a reply begins with {magic:#x} for request {cookie}"
        )));
    }
    if error != 0 {
        return Err(ProbeError::Read(error));
    }
    let mut data = vec![0; model::usize_of(read.into())];
    stream.read_exact(&mut data).await?;
    stream.write_all(&request_bytes(COMMAND_DISCONNECT, 2, 0)).await?;
    Ok(Probed { size_bytes, flags, read })
}

/// Client flags and `NBD_OPT_GO` without information requests.
fn open_bytes(export: &str) -> Vec<u8> {
    let name = export.as_bytes();
    let mut out = CLIENT_FLAGS.to_be_bytes().to_vec();
    out.extend_from_slice(OPTION_MAGIC);
    out.extend_from_slice(&OPTION_GO.to_be_bytes());
    out.extend_from_slice(&model::u32_of(4 + name.len() + 2).to_be_bytes());
    out.extend_from_slice(&model::u32_of(name.len()).to_be_bytes());
    out.extend_from_slice(name);
    out.extend_from_slice(&0_u16.to_be_bytes());
    out
}

fn request_bytes(command: u16, cookie: u64, len: u32) -> Vec<u8> {
    let mut out = REQUEST_MAGIC.to_be_bytes().to_vec();
    out.extend_from_slice(&0_u16.to_be_bytes());
    out.extend_from_slice(&command.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&0_u64.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out
}

async fn read_go_replies<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(u64, u16), ProbeError> {
    let mut export = None;
    for _ in 0..REPLIES_MAX {
        let magic = stream.read_u64().await?;
        let option = stream.read_u32().await?;
        let kind = stream.read_u32().await?;
        let len = stream.read_u32().await?;
        if magic != OPTION_REPLY_MAGIC || option != OPTION_GO || len > REPLY_LEN_MAX {
            return Err(ProbeError::NotNbd(format!(
                "an option reply of {len} bytes begins with {magic:#x}"
            )));
        }
        let mut data = vec![0; model::usize_of(len.into())];
        stream.read_exact(&mut data).await?;
        match kind {
            REPLY_ACK => {
                return export.ok_or_else(|| ProbeError::NotNbd("no export information".into()));
            }
            REPLY_INFO => export = export_info(&data).or(export),
            ERROR_UNKNOWN => return Err(ProbeError::NoExport),
            kind if kind & REPLY_IS_ERROR != 0 => {
                let text = String::from_utf8_lossy(&data).into_owned();
                return Err(ProbeError::Refused(if text.is_empty() {
                    format!("error {kind:#x}")
                } else {
                    text
                }));
            }
            _ => {}
        }
    }
    Err(ProbeError::NotNbd("it never acknowledges the export".into()))
}

/// Size and flags, if this is `NBD_INFO_EXPORT`.
fn export_info(data: &[u8]) -> Option<(u64, u16)> {
    let (kind, rest) = data.split_first_chunk::<2>()?;
    let (size, rest) = rest.split_first_chunk::<8>()?;
    let (flags, rest) = rest.split_first_chunk::<2>()?;
    (u16::from_be_bytes(*kind) == INFO_EXPORT && rest.is_empty())
        .then(|| (u64::from_be_bytes(*size), u16::from_be_bytes(*flags)))
}

/// Where a client finds a vDisk, in the form that NBD tools take.
#[must_use]
pub fn nbd_uri(endpoint: &Endpoint, vdisk: &str) -> String {
    match endpoint {
        Endpoint::Tcp(address) => format!("nbd://{address}/{vdisk}"),
        Endpoint::Tls(address) => format!("nbds://{address}/{vdisk}"),
        Endpoint::Unix(path) => format!("nbd+unix:///{vdisk}?socket={}", path.display()),
    }
}

#[cfg(test)]
mod tests;
