//! SIGINT and SIGTERM: the first asks to end in good order, the second ends at once.

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::exit;

/// Whether the user asked to end.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Takes over SIGINT and SIGTERM.
    ///
    /// # Errors
    /// If the process may not handle signals.
    pub(crate) fn on_signals() -> anyhow::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt()).context("handling SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("handling SIGTERM")?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if sender.send_replace(true) {
                    // Asked twice: whatever hangs is not waited for.
                    std::process::exit(i32::from(exit::INTERRUPTED));
                }
            }
        });
        Ok(Self(receiver))
    }

    /// Ready as soon as the user asked to end.
    pub(crate) async fn requested(&self) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|stop| *stop).await.is_err() {
            // No handler, no signal.
            std::future::pending::<()>().await;
        }
    }
}
