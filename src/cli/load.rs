//! `ratelimitd load`: asks a running server over gRPC as fast as it answers, and says what came back and how long it
//! took. The loop is closed: each stream asks again only when it was answered, so latencies are those at the rate that
//! the server and this program reach together, not those at a rate that somebody wished for. Everything runs on one
//! current-thread runtime, so on a machine with two cores the server keeps the other. It knows no rules and no store.

use std::error::Error as StdError;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::CreationError;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

use crate::grpc::RateLimitClient;
use crate::grpc::pb::rate_limit_descriptor::Entry;
use crate::grpc::pb::{RateLimitDescriptor, RateLimitRequest};
use crate::limit::parse_duration;

mod report;

use report::{Report, Seen, per_second, with_causes};

/// Drive a running server over gRPC and print rates, answers and latencies.
#[derive(clap::Args, Debug)]
pub struct LoadArgs {
    /// Where the server listens: http://HOST:PORT (plain text), or unix:/PATH
    #[arg(long, default_value = "http://127.0.0.1:8081", value_name = "URL")]
    pub target: String,

    /// HTTP/2 connections, 1 to 256
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_CONNECTIONS))]
    pub connections: u64,

    /// Requests in flight per connection, 1 to 1024; at most 16384 over all connections. What is above the server's own
    /// bound on streams waits on this side, and its latency includes that
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_STREAMS))]
    pub streams: u64,

    /// Distinct client ids, 1 to 10^9; each request picks one pseudo-randomly
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_CLIENTS))]
    pub clients: u64,

    /// Where the pseudo-random choice of clients starts; the same seed asks for the same clients
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,

    /// How long to measure, such as 10s or 1m30s; at most 24h
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = bounded_duration)]
    pub duration: Duration,

    /// How long to ask before measuring; not counted; at most 24h, 0 for none
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = bounded_duration)]
    pub warmup: Duration,

    /// Stop after so many measured requests, or after --duration, whichever comes first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: Option<u64>,

    /// The domain that every request names
    #[arg(long, default_value = "api", value_name = "DOMAIN")]
    pub domain: String,

    /// One descriptor: its entries in order, as key=value,key=value. {client} in a value stands for the request's client
    /// number, the same one in the whole request. A value may be empty and may hold =, but no comma. Repeat the flag for
    /// several descriptors in each request
    #[arg(long = "descriptor", default_value = "client={client}", value_name = "ENTRIES", value_parser = DescriptorTemplate::parse)]
    pub descriptors: Vec<DescriptorTemplate>,

    /// The server's process on this machine: reports its CPU time per request
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
}

/// What one `--descriptor` says, ready to be filled with a client's number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescriptorTemplate {
    entries: Vec<(String, ValueTemplate)>,
}

/// Why a load run could not start, or has nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The target is no address, or nobody answers there.
    #[error("can't connect to {target}: {reason}")]
    Connect { target: String, reason: String },
    /// `--connections` times `--streams` is too many.
    #[error("{0} requests in flight (connections x streams) are too many: at most {MOST_IN_FLIGHT}")]
    InFlight(u64),
    /// `--pid` names no process whose CPU time can be read.
    #[error("can't read the CPU time of process {pid}: {source}")]
    Cpu { pid: u32, source: io::Error },
    /// The report was printed, but it holds not one answer.
    #[error("no request was answered OK or OVER_LIMIT")]
    NothingAnswered,
    #[error("can't prepare the latency histogram: {0}")]
    Histogram(#[from] CreationError),
    #[error("can't start the runtime: {0}")]
    Runtime(io::Error),
    #[error("can't write the report: {0}")]
    Write(io::Error),
}

impl DescriptorTemplate {
    /// Reads `key=value,key=value`.
    fn parse(text: &str) -> Result<Self, String> {
        let entry = |part: &str| match part.split_once('=') {
            Some(("", _)) => Err(format!("`{part}` has no key before its `=`")),
            Some((key, value)) => Ok((key.to_owned(), ValueTemplate::parse(value))),
            None => Err(format!("`{part}` is no entry: write key=value")),
        };
        Ok(Self { entries: text.split(',').map(entry).collect::<Result<_, _>>()? })
    }

    fn fill(&self, client: &str) -> RateLimitDescriptor {
        let entries = self.entries.iter().map(|(key, value)| Entry { key: key.clone(), value: value.fill(client) }).collect();
        RateLimitDescriptor { entries, ..Default::default() }
    }
}

/// Runs the load until it is over or Ctrl-C is pressed, on a runtime of its own. The report goes to stdout, the
/// progress bar to stderr (none where stderr is no terminal).
///
/// # Errors
/// The server can't be reached, a flag makes no sense, or not one request was answered.
pub fn run(args: LoadArgs) -> Result<(), LoadError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(LoadError::Runtime)?;
    let report = runtime.block_on(drive(&args))?;
    io::stdout().lock().write_all(report.to_string().as_bytes()).map_err(LoadError::Write)?;
    if report.sent > 0 && report.seen.answered() == 0 { Err(LoadError::NothingAnswered) } else { Ok(()) }
}

const MOST_CONNECTIONS: u64 = 256;
const MOST_STREAMS: u64 = 1_024;
const MOST_IN_FLIGHT: u64 = 16_384;
const MOST_CLIENTS: u64 = 1_000_000_000;
const LONGEST_RUN: Duration = Duration::from_secs(24 * 60 * 60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long requests in flight are waited for at the end; those that take longer are reported as unanswered.
const DRAIN: Duration = Duration::from_secs(2);
/// The pause of a stream that lost its connection, so that a dead server is not asked in a busy loop.
const RECONNECT_PAUSE: Duration = Duration::from_millis(10);
const BAR_REFRESH: Duration = Duration::from_millis(250);

type Interrupt<'a> = Pin<&'a mut (dyn Future<Output = ()> + 'a)>;

async fn drive(args: &LoadArgs) -> Result<Report, LoadError> {
    let in_flight = args.connections * args.streams;
    if in_flight > MOST_IN_FLIGHT {
        return Err(LoadError::InFlight(in_flight));
    }
    // A wrong pid is said before the run, not after it.
    args.pid.map(cpu_time).transpose()?;
    let connections = connect(args).await?;
    let run = Arc::new(Run::new(args)?);
    let mut streams = JoinSet::new();
    for stream in 0..in_flight {
        let client = connections[(stream % args.connections) as usize].clone();
        let numbers = ClientNumbers::new(args.seed.wrapping_add(stream), args.clients);
        streams.spawn(ask_until_over(Arc::clone(&run), client, numbers));
    }

    let mut interrupt = std::pin::pin!(ctrl_c());
    let bar = new_bar(args);
    bar.set_message("warming up");
    // Without a warm-up no stream runs before requests are counted.
    let mut interrupted = !args.warmup.is_zero()
        && tokio::select! {
            () = tokio::time::sleep(args.warmup) => false,
            () = interrupt.as_mut() => true,
        };
    let server_before = args.pid.map(cpu_time).transpose()?;
    let own_before = cpu_time(std::process::id())?;
    let started = Instant::now();
    if !interrupted {
        run.start_counting();
        interrupted = watch(&run, &bar, args, started, &mut streams, interrupt).await;
    }
    run.finish();
    let drained = tokio::time::timeout(DRAIN, async { while streams.join_next().await.is_some() {} }).await;
    let elapsed = started.elapsed();
    bar.finish_and_clear();

    let own_cpu = cpu_time(std::process::id())?.saturating_sub(own_before);
    // A server that died meanwhile costs the row, not the report.
    let server_cpu = args.pid.zip(server_before).map(|(pid, before)| match cpu_time(pid) {
        Ok(after) => Ok(after.saturating_sub(before)),
        Err(error) => Err(error.to_string()),
    });
    if drained.is_err() {
        streams.abort_all();
    }
    let (sent, seen) = run.take()?;
    Ok(Report { title: title(args), interrupted, elapsed, sent, seen, own_cpu, server_cpu })
}

/// Opens the connections. A `Channel` is one HTTP/2 connection, which it opens anew when it is lost; its clones share it.
async fn connect(args: &LoadArgs) -> Result<Vec<RateLimitClient>, LoadError> {
    let refuse = |error: tonic::transport::Error| LoadError::Connect {
        target: args.target.clone(),
        reason: with_causes(&error.to_string(), &error),
    };
    let endpoint = Endpoint::from_shared(args.target.clone())
        .map_err(refuse)?
        .connect_timeout(CONNECT_TIMEOUT)
        // One place per stream, so that none waits in this program's own queue.
        .buffer_size(args.streams as usize);
    let mut clients = Vec::new();
    for _ in 0..args.connections {
        clients.push(RateLimitClient::new(endpoint.connect().await.map_err(refuse)?));
    }
    Ok(clients)
}

/// Where Ctrl-C can't be listened for, it never comes, and the run ends on time.
async fn ctrl_c() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}

/// One stream: asks, waits for the answer, notes it, asks again.
async fn ask_until_over(run: Arc<Run>, mut client: RateLimitClient, mut numbers: ClientNumbers) {
    while let Some(counted) = run.next() {
        let request = run.request(numbers.next());
        let sent = Instant::now();
        let answer = client.should_rate_limit(request).await;
        let took = sent.elapsed();
        // Errors that the server sent have no source; those of a broken connection have.
        let disconnected = answer.as_ref().is_err_and(|status| status.source().is_some());
        if counted {
            run.state.lock().seen.note(answer, took);
        }
        if disconnected {
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }
}

/// Moves the bar until the time is up, every stream is done (`--requests`) or Ctrl-C; says whether it was Ctrl-C.
async fn watch(
    run: &Run,
    bar: &ProgressBar,
    args: &LoadArgs,
    started: Instant,
    streams: &mut JoinSet<()>,
    mut interrupt: Interrupt<'_>,
) -> bool {
    let mut refresh = tokio::time::interval(BAR_REFRESH);
    let mut over = std::pin::pin!(tokio::time::sleep(args.duration));
    loop {
        tokio::select! {
            () = &mut over => return false,
            () = interrupt.as_mut() => return true,
            joined = streams.join_next() => if joined.is_none() { return false },
            _ = refresh.tick() => {
                let (sent, errors) = run.progress();
                let elapsed = started.elapsed();
                bar.set_position(if args.requests.is_some() { sent } else { elapsed.as_millis() as u64 });
                bar.set_message(format!("{:.0}/s, {errors} errors", per_second(sent, elapsed)));
            }
        }
    }
}

fn new_bar(args: &LoadArgs) -> ProgressBar {
    let length = args.requests.unwrap_or(args.duration.as_millis() as u64);
    // A target on stderr draws nothing where stderr is no terminal.
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %  {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style)
}

/// What all streams of a run share. They live on one thread, so the lock is never waited for.
struct Run {
    domain: String,
    descriptors: Vec<DescriptorTemplate>,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    sent: u64,
    most: u64,
    seen: Seen,
}

enum Phase {
    WarmingUp,
    Counting,
    Over,
}

impl Run {
    fn new(args: &LoadArgs) -> Result<Self, CreationError> {
        let state = State { phase: Phase::WarmingUp, sent: 0, most: args.requests.unwrap_or(u64::MAX), seen: Seen::new()? };
        Ok(Self { domain: args.domain.clone(), descriptors: args.descriptors.clone(), state: Mutex::new(state) })
    }

    /// Whether to ask once more, and if so, whether that is counted.
    fn next(&self) -> Option<bool> {
        let mut state = self.state.lock();
        match state.phase {
            Phase::WarmingUp => Some(false),
            Phase::Counting if state.sent < state.most => {
                state.sent += 1;
                Some(true)
            }
            Phase::Counting | Phase::Over => None,
        }
    }

    fn request(&self, client: u64) -> RateLimitRequest {
        let client = client.to_string();
        let descriptors = self.descriptors.iter().map(|descriptor| descriptor.fill(&client)).collect();
        RateLimitRequest { domain: self.domain.clone(), descriptors, hits_addend: 0 }
    }

    fn start_counting(&self) {
        self.state.lock().phase = Phase::Counting;
    }

    fn finish(&self) {
        self.state.lock().phase = Phase::Over;
    }

    /// Requests sent and errors met so far.
    fn progress(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.sent, state.seen.errors())
    }

    fn take(&self) -> Result<(u64, Seen), CreationError> {
        let mut state = self.state.lock();
        Ok((state.sent, std::mem::replace(&mut state.seen, Seen::new()?)))
    }
}

/// The texts between the places where the client's number goes: one more than there are places.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ValueTemplate(Vec<String>);

impl ValueTemplate {
    fn parse(text: &str) -> Self {
        Self(text.split("{client}").map(str::to_owned).collect())
    }

    fn fill(&self, client: &str) -> String {
        self.0.join(client)
    }
}

/// The client numbers of one stream: splitmix64 (Steele, Lea and Flood 2014), scaled into 0..clients by its high bits.
struct ClientNumbers {
    state: u64,
    clients: u64,
}

impl ClientNumbers {
    fn new(seed: u64, clients: u64) -> Self {
        let mut numbers = Self { state: seed, clients };
        // Neighbouring seeds would else be the same sequence, shifted.
        numbers.state = numbers.mixed();
        numbers
    }

    fn next(&mut self) -> u64 {
        ((u128::from(self.mixed()) * u128::from(self.clients)) >> 64) as u64
    }

    fn mixed(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// The user and system time that a process has used, of all its threads, in steps of 10 ms.
fn cpu_time(pid: u32) -> Result<Duration, LoadError> {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .and_then(|stat| parse_stat(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is not as expected")))
        .map_err(|source| LoadError::Cpu { pid, source })
}

/// utime + stime, fields 14 and 15 of proc_pid_stat(5). Field 2 is the program's name in parentheses and may itself hold
/// spaces and parentheses, so fields are counted from the last `)`.
fn parse_stat(stat: &str) -> Option<Duration> {
    // The kernel scales the ticks it shows to USER_HZ, which is 100 on every architecture that tokio runs on, whatever
    // rate the kernel itself ticks at; sysconf(_SC_CLK_TCK) says the same, but needs unsafe code.
    const MILLIS_PER_TICK: u64 = 1_000 / 100;
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut ticks = after_name.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    let (user, system) = (ticks.next()?.ok()?, ticks.next()?.ok()?);
    Some(Duration::from_millis(user.checked_add(system)?.checked_mul(MILLIS_PER_TICK)?))
}

fn title(args: &LoadArgs) -> String {
    format!("{}, {} connections x {} in flight, {} clients", args.target, args.connections, args.streams, args.clients)
}

fn bounded_duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    if duration > LONGEST_RUN { Err(format!("`{text}` is longer than 24h")) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str, client: &str) -> Vec<(String, String)> {
        let descriptor = DescriptorTemplate::parse(text).unwrap().fill(client);
        descriptor.entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn a_descriptor_is_its_entries_in_order_with_the_client_filled_in() {
        assert_eq!(filled("client={client}", "7"), [pair("client", "7")]);
        assert_eq!(filled("path=/a,user=u{client}-{client}", "42"), [pair("path", "/a"), pair("user", "u42-42")]);
    }

    #[test]
    fn values_may_be_empty_and_hold_equals_signs_and_other_braces() {
        assert_eq!(filled("a=,b=x=y,c={other}", "7"), [pair("a", ""), pair("b", "x=y"), pair("c", "{other}")]);
    }

    #[test]
    fn entries_without_a_key_or_an_equals_sign_are_refused() {
        for text in ["", "a", "=b", "a=b,", "a=b,,c=d", ",a=b"] {
            assert!(DescriptorTemplate::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpu_time_is_read_behind_any_program_name() {
        let rest = "S 1 2 3 0 -1 4194560 10 20 30 40 150 25 7 8 20 0 1 0 99 1000 200";
        for name in ["ratelimitd", "a b", "odd) S 1 (name", ")"] {
            assert_eq!(parse_stat(&format!("123 ({name}) {rest}")), Some(Duration::from_millis(1_750)), "{name}");
        }
    }

    #[test]
    fn a_stat_line_that_is_cut_off_or_no_stat_line_is_no_cpu_time() {
        for text in ["", "123 (x) S 1 2 3", "123 x S 1 2 3 0 -1 1 1 2 3 4 5 6", "123 (x) S 1 2 3 0 -1 1 1 2 3 4 many 6"] {
            assert_eq!(parse_stat(text), None, "{text}");
        }
    }

    #[test]
    fn this_process_has_a_cpu_time_and_no_process_has_pid_0() {
        assert!(cpu_time(std::process::id()).is_ok());
        assert!(matches!(cpu_time(0), Err(LoadError::Cpu { pid: 0, .. })));
    }

    #[test]
    fn client_numbers_stay_in_bounds_reach_most_clients_and_repeat_with_the_seed() {
        let drawn = |seed| {
            let mut numbers = ClientNumbers::new(seed, 100);
            (0..1_000).map(|_| numbers.next()).collect::<Vec<_>>()
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert!(drawn(1).iter().all(|&client| client < 100));
        assert!(drawn(1).iter().collect::<std::collections::HashSet<_>>().len() > 95);
        assert_eq!(ClientNumbers::new(9, 1).next(), 0);
    }

    #[test]
    fn longer_runs_than_a_day_are_refused() {
        assert_eq!(bounded_duration("24h"), Ok(Duration::from_secs(86_400)));
        assert!(bounded_duration("24h1us").is_err() && bounded_duration("soon").is_err());
    }

    #[test]
    fn the_flags_are_sound() {
        use clap::Args as _;
        LoadArgs::augment_args(clap::Command::new("load")).debug_assert();
    }
}
