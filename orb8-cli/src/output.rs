//! Writing to stdout without ever waiting for its reader where a signal must be heard.

use std::{
    io::{self, Write},
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, oneshot},
};

/// Pieces that wait for a slow reader, before [`Output::write`] waits too.
const PENDING: usize = 16;

/// How long the end of a command waits for a reader that takes nothing.
const FINISH: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Piece {
    Text(Vec<u8>),
    /// Tells when all before it is written.
    Mark(oneshot::Sender<()>),
}

/// Stdout behind a thread: a reader that takes nothing stops the thread, not the command.
#[derive(Debug)]
pub(crate) struct Output {
    sender: mpsc::Sender<Piece>,
    /// Why the thread ended; `None` once that was told.
    end: Option<oneshot::Receiver<io::Result<()>>>,
    /// Tells when the pipe's reader goes, even while there is nothing to write. Files have no such thing.
    pipe: Option<AsyncFd<OwnedFd>>,
}

impl Output {
    /// This process's stdout.
    pub(crate) fn stdout() -> Self {
        let mut output = Self::to(io::stdout());
        output.pipe = io::stdout().as_fd().try_clone_to_owned().ok().and_then(watched);
        output
    }

    fn to(mut writer: impl Write + Send + 'static) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Piece>(PENDING);
        let (ended, end) = oneshot::channel();
        std::thread::spawn(move || {
            let mut result = Ok(());
            while let Some(piece) = receiver.blocking_recv() {
                match piece {
                    Piece::Text(bytes) => result = writer.write_all(&bytes).and_then(|()| writer.flush()),
                    // Who waited may be gone.
                    Piece::Mark(reached) => drop(reached.send(())),
                }
                if result.is_err() {
                    break;
                }
            }
            drop(receiver);
            // Nobody may wait for the result any more.
            let _ = ended.send(result);
        });
        Self {
            sender,
            end: Some(end),
            pipe: None,
        }
    }

    /// Writes, in order.
    ///
    /// # Errors
    /// The error of an earlier write (`BrokenPipe`: the reader is gone).
    pub(crate) async fn write(&mut self, text: impl Into<Vec<u8>>) -> io::Result<()> {
        if self.sender.send(Piece::Text(text.into())).await.is_ok() {
            return Ok(());
        }
        Err(self.error().await)
    }

    /// Waits until all that was given to [`Output::write`] is written, so that what is said on stderr comes after.
    ///
    /// # Errors
    /// As for [`Output::write`].
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        let (reached, mark) = oneshot::channel();
        if self.sender.send(Piece::Mark(reached)).await.is_ok() && mark.await.is_ok() {
            return Ok(());
        }
        Err(self.error().await)
    }

    /// Why the thread ended.
    async fn error(&mut self) -> io::Error {
        match self.end.take() {
            Some(end) => match end.await {
                Ok(Err(error)) => error,
                _ => io::ErrorKind::BrokenPipe.into(),
            },
            None => io::ErrorKind::BrokenPipe.into(),
        }
    }

    /// Ready when the reader is gone.
    pub(crate) async fn reader_gone(&self) {
        if let Some(pipe) = &self.pipe
            && let Ok(ready) = pipe.ready(Interest::ERROR).await
            && ready.ready().is_error()
        {
            return;
        }
        self.sender.closed().await;
    }

    /// Waits until all is written, but not for a reader that takes nothing.
    ///
    /// # Errors
    /// The error of a write.
    pub(crate) async fn finish(self) -> io::Result<()> {
        drop(self.sender);
        let Some(end) = self.end else { return Ok(()) };
        match tokio::time::timeout(FINISH, end).await {
            Ok(Ok(result)) => result,
            _ => Ok(()),
        }
    }
}

/// `fd` in the runtime's epoll set, which reports that a pipe's reader is gone; `None` for files.
fn watched(fd: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the `AsyncFd`, so it stays open and the same until that is dropped.
    unsafe { AsyncFd::register_with_interest(fd, Interest::ERROR) }.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_broken_pipe_is_told() {
        let mut output = Output::to(Broken);
        output.write("x").await.unwrap();
        output.reader_gone().await;
        assert_eq!(
            output.write("y").await.unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[tokio::test]
    async fn all_is_written_in_order() {
        let file = std::env::temp_dir().join(format!("orb8-output-{}", std::process::id()));
        let mut output = Output::to(std::fs::File::create(&file).unwrap());
        for n in 0..100 {
            output.write(format!("{n}\n")).await.unwrap();
        }
        output.finish().await.unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(file).unwrap();
        assert_eq!(text, (0..100).map(|n| format!("{n}\n")).collect::<String>());
    }
}
