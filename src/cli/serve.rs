//! `ratelimitd serve`: starts the log, binds the server, and runs it until SIGINT or SIGTERM.
//! SIGHUP has it read its rules files again.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tracing::level_filters::LevelFilter;
use tracing::{Level, error};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::server::{Server, ServerError};
use crate::settings::{LogFormat, LogLevel, ServeArgs, SettingsError};

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("the control runtime can't be started: {0}")]
    Runtime(#[from] io::Error),
}

/// Lines that wait for whoever reads the log. What finds no room is lost, and counted.
const LOG_LINES_MAX: usize = 4_096;

/// How often it is looked whether lines were lost.
const LOSSES_TOLD_EVERY: Duration = Duration::from_secs(10);

pub fn run(args: ServeArgs) -> Result<(), ServeError> {
    let (level, format) = args.log();
    // Held to the end: the last lines are still written, if whoever reads them takes them within a second.
    let (_log, lost) = start_log(level, format);
    let settings = args.settle(|name| std::env::var(name).ok())?;
    // The control runtime: accepting, metrics, admin, reloads, sweeps. Requests have runtimes of their own.
    let control = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("control").enable_all().build()?;
    let served = control.block_on(async {
        let mut stop = Vec::new();
        for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
            stop.push(signal(kind)?);
        }
        let (mut hangups, reload) = (signal(SignalKind::hangup())?, Arc::new(Notify::new()));
        let asked = Arc::clone(&reload);
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                asked.notify_one();
            }
        });
        tokio::spawn(tell_losses(lost));
        let shutdown = async move {
            std::future::poll_fn(|cx| {
                let any = stop.iter_mut().any(|signal| signal.poll_recv(cx).is_ready());
                if any { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            })
            .await;
        };
        Ok(Server::bind(settings).await?.run(shutdown, reload).await?)
    });
    // Not waited for: files that are being read, from a file system that hangs, say.
    control.shutdown_background();
    served
}

/// Starts the log, which a thread of its own writes: a terminal or a pipe that takes nothing more holds up no request.
fn start_log(level: LogLevel, format: LogFormat) -> (WorkerGuard, ErrorCounter) {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let (stderr, guard) = NonBlockingBuilder::default().buffered_lines_limit(LOG_LINES_MAX).thread_name("log").finish(io::stderr());
    let lost = stderr.error_counter();
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(stderr).with_target(false);
    // It warns of each watch whose folder is gone, as after every swap of a ConfigMap. What matters it returns as an error.
    let heard = Targets::new().with_default(level).with_target("notify", LevelFilter::OFF);
    match format {
        LogFormat::Text => log.with_ansi(false).finish().with(heard).init(),
        LogFormat::Json => log.json().flatten_event(true).finish().with(heard).init(),
    }
    // Without the hook a panic would be written by the thread that panics.
    std::panic::set_hook(Box::new(|panic| match Backtrace::capture() {
        backtrace if backtrace.status() == BacktraceStatus::Captured => error!(%backtrace, "{panic}"),
        _ => error!("{panic}"),
    }));
    (guard, lost)
}

/// Says in the log how many lines it has lost, once there is room again.
async fn tell_losses(lost: ErrorCounter) {
    let mut told = 0;
    loop {
        tokio::time::sleep(LOSSES_TOLD_EVERY).await;
        let lines = lost.dropped_lines();
        if lines > told {
            error!(lines = lines - told, "lines of this log were lost: whoever reads it did not keep up");
            // Where this one is lost as well, the next one tells of all of them.
            if lost.dropped_lines() == lines {
                told = lines;
            }
        }
    }
}
