//! Fetching the page.

use std::{
    error::Error as StdError,
    io::{self, Write},
    time::{Duration, SystemTime},
};

use flate2::write::GzDecoder;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, StatusCode, Uri,
    body::{Bytes, Incoming},
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, USER_AGENT},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

use super::page::{self, NotDcgm};
use crate::sample::Snapshot;

/// A connection that was not used for so long is closed.
const IDLE: Duration = Duration::from_secs(30);

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum DcgmError {
    /// The address is no good.
    #[error("{url} is no address of a dcgm-exporter: {reason}; one is http://localhost:9400/metrics")]
    Address {
        /// As it was given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// Nobody answers, or not in HTTP.
    #[error("dcgm-exporter does not answer at {url}: {reason}")]
    Unreachable {
        /// Where.
        url: Uri,
        /// The chain of causes.
        reason: String,
    },
    /// The page did not come in time, or not all of it.
    #[error("the page at {url} did not come within {} s", timeout.as_secs_f64())]
    TimedOut {
        /// Where.
        url: Uri,
        /// The limit.
        timeout: Duration,
    },
    /// An answer that is not the page, a redirect among them: these are not followed.
    #[error("{url} answers {status} instead of a page of metrics")]
    Status {
        /// Where.
        url: Uri,
        /// What.
        status: StatusCode,
    },
    /// The page is larger than allowed, once decompressed.
    #[error("the page at {url} has more than {limit} bytes")]
    TooLarge {
        /// Where.
        url: Uri,
        /// The limit.
        limit: usize,
    },
    /// The page is compressed in a way that was not asked for, or is not what it says.
    #[error("the page at {url} cannot be decompressed: {reason}")]
    Encoding {
        /// Where.
        url: Uri,
        /// What is wrong.
        reason: String,
    },
    /// It is another's page.
    #[error("{url}: {source}")]
    NotDcgm {
        /// Where.
        url: Uri,
        /// What is wrong.
        source: NotDcgm,
    },
}

/// Fetches the page of one exporter again and again.
#[derive(Debug)]
pub struct Scraper {
    client: Client<HttpConnector, Empty<Bytes>>,
    url: Uri,
    timeout: Duration,
    max_bytes: usize,
}

impl Scraper {
    /// Of the page at `url`. A scrape takes no longer than `timeout`, and a page has no more than `max_bytes`, decompressed.
    ///
    /// # Errors
    /// If the address is not one of plain HTTP, or has a user in it.
    pub fn new(url: &str, timeout: Duration, max_bytes: usize) -> Result<Self, DcgmError> {
        let wrong = |reason: String| DcgmError::Address {
            url: url.to_owned(),
            reason,
        };
        let uri: Uri = url
            .parse()
            .map_err(|error: hyper::http::uri::InvalidUri| wrong(error.to_string()))?;
        match (uri.scheme_str(), uri.authority()) {
            (Some("http"), Some(authority)) if authority.as_str().contains('@') => {
                // Not repeated in the error: it may hold a password.
                return Err(DcgmError::Address {
                    url: format!("http://…@{}", authority.host()),
                    reason: "a user cannot be given".to_owned(),
                });
            }
            (Some("http"), Some(authority)) if !authority.host().is_empty() => {}
            _ => return Err(wrong("it has to begin with http:// and a host".to_owned())),
        }
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(timeout));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(1)
            .build(connector);
        Ok(Self {
            client,
            url: uri,
            timeout,
            max_bytes,
        })
    }

    /// Where the page is.
    #[must_use]
    pub const fn url(&self) -> &Uri {
        &self.url
    }

    /// Fetches and reads the page. Of one whose end is missing, because the connection broke or the exporter stopped, what
    /// came is used, and [`Snapshot::rejected`] counts the rest as one.
    ///
    /// # Errors
    /// If there is no page, or it is not one of dcgm-exporter.
    pub async fn sample(&self) -> Result<Snapshot, DcgmError> {
        let page = tokio::time::timeout(self.timeout, self.fetch())
            .await
            .map_err(|_| DcgmError::TimedOut {
                url: self.url.clone(),
                timeout: self.timeout,
            })??;
        let mut snapshot = page::read(&page.bytes, page.time).map_err(|source| DcgmError::NotDcgm {
            url: self.url.clone(),
            source,
        })?;
        if let Some(reason) = page.broken {
            snapshot.rejected += 1;
            snapshot.first_rejected = Some(format!("the page is not whole: {reason}"));
        }
        Ok(snapshot)
    }

    async fn fetch(&self) -> Result<Page, DcgmError> {
        let response = match self.client.request(self.request()?).await {
            // The connection of the last scrape may have ended since, with an exporter that was restarted: a new one tells.
            Err(error) if !error.is_connect() => self.client.request(self.request()?).await,
            first => first,
        }
        .map_err(|error| DcgmError::Unreachable {
            url: self.url.clone(),
            reason: causes(&error),
        })?;
        if response.status() != StatusCode::OK {
            return Err(DcgmError::Status {
                url: self.url.clone(),
                status: response.status(),
            });
        }
        let time = SystemTime::now();
        let encoding = response
            .headers()
            .get(CONTENT_ENCODING)
            .map_or(&b""[..], hyper::header::HeaderValue::as_bytes);
        let Some(compressed) = is_compressed(encoding) else {
            let reason = format!("its encoding is {}", encoding.escape_ascii());
            return Err(self.encoding(reason));
        };
        let (bytes, broken) = self.receive(response.into_body(), compressed).await?;
        Ok(Page { bytes, time, broken })
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>, DcgmError> {
        Request::get(&self.url)
            .header(USER_AGENT, concat!("orb8/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "text/plain;version=0.0.4")
            .header(ACCEPT_ENCODING, "gzip")
            .body(Empty::new())
            .map_err(|error| DcgmError::Address {
                url: self.url.to_string(),
                reason: error.to_string(),
            })
    }

    /// Receives the page, and decompresses it while it comes: never is more than the limit held.
    async fn receive(
        &self,
        mut body: Incoming,
        compressed: bool,
    ) -> Result<(Vec<u8>, Option<String>), DcgmError> {
        let bounded = Bounded {
            bytes: Vec::new(),
            limit: self.max_bytes,
        };
        let mut sink = if compressed {
            Sink::Gzip(Box::new(GzDecoder::new(bounded)))
        } else {
            Sink::Plain(bounded)
        };
        let mut broken = None;
        while let Some(frame) = body.frame().await {
            let data = match frame {
                Ok(frame) => frame.into_data().unwrap_or_default(),
                Err(error) => {
                    broken = Some(causes(&error));
                    break;
                }
            };
            sink.write_all(&data).map_err(|error| self.refused(&error))?;
        }
        match sink {
            Sink::Plain(bounded) => Ok((bounded.bytes, broken)),
            Sink::Gzip(mut decoder) => match decoder.try_finish() {
                Ok(()) => Ok((std::mem::take(&mut decoder.get_mut().bytes), broken)),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof || broken.is_some() => {
                    let bytes = std::mem::take(&mut decoder.get_mut().bytes);
                    Ok((
                        bytes,
                        broken.or_else(|| Some("its compressed end is missing".to_owned())),
                    ))
                }
                Err(error) => Err(self.refused(&error)),
            },
        }
    }

    fn refused(&self, error: &io::Error) -> DcgmError {
        if error
            .get_ref()
            .is_some_and(<dyn StdError + Send + Sync>::is::<Full>)
        {
            DcgmError::TooLarge {
                url: self.url.clone(),
                limit: self.max_bytes,
            }
        } else {
            self.encoding(error.to_string())
        }
    }

    fn encoding(&self, reason: String) -> DcgmError {
        DcgmError::Encoding {
            url: self.url.clone(),
            reason,
        }
    }
}

/// Whether a page of this encoding is compressed; none: in a way that was not asked for. Names of encodings have no case
/// (RFC 9110, 8.4.1).
fn is_compressed(encoding: &[u8]) -> Option<bool> {
    let is = |name: &str| encoding.eq_ignore_ascii_case(name.as_bytes());
    match () {
        () if is("") || is("identity") => Some(false),
        () if is("gzip") || is("x-gzip") => Some(true),
        () => None,
    }
}

struct Page {
    bytes: Vec<u8>,
    time: SystemTime,
    broken: Option<String>,
}

enum Sink {
    Plain(Bounded),
    Gzip(Box<GzDecoder<Bounded>>),
}

impl Sink {
    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(bounded) => bounded.write_all(data),
            Self::Gzip(decoder) => decoder.write_all(data),
        }
    }
}

/// Memory that refuses to hold more than its limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("the limit is reached")]
struct Full;

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.len() > self.limit - self.bytes.len() {
            return Err(io::Error::other(Full));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The innermost cause says what to do, the others say where it happened.
fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_have_no_case() {
        for (encoding, compressed) in [
            ("", Some(false)),
            ("Identity", Some(false)),
            ("gzip", Some(true)),
            ("GZIP", Some(true)),
            ("X-GZip", Some(true)),
            ("br", None),
            ("gzip, gzip", None),
        ] {
            assert_eq!(is_compressed(encoding.as_bytes()), compressed, "{encoding}");
        }
    }
}
