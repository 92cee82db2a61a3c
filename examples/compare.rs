//! The same traffic through each algorithm, and through a lease: a table on stdout, and docs/algorithms.svg. Needs a Redis that
//! it may fill, for leases are Redis's:
//!
//!     redis-server --save "" &
//!     cargo run --example compare -- 127.0.0.1:6379 docs/algorithms.svg
//!
//! Time is stepped, so it takes no longer than it needs, and the same traffic is decided to the microsecond each time. Leases
//! are fetched beside the requests, so theirs may differ by a few hits.

use std::env;
use std::error::Error;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use distributed_rate_limiter::hit::{Action, Counter, Hit, Kind};
use distributed_rate_limiter::limit::{Algorithm, Cost, Lease, Limit, LimitError, LogEntries, Window};
use distributed_rate_limiter::metrics::RedisSeries;
use distributed_rate_limiter::store::redis::RedisOptions;
use distributed_rate_limiter::store::{Clock, Redis, SteppedClock, Store};

const LIMIT: u32 = 100;
const WINDOW: u64 = 10_000_000;
const LASTS: u64 = 5 * WINDOW;
const HALF_A_SECOND: u64 = 500_000;

/// A way to count.
struct Mode {
    name: &'static str,
    colour: &'static str,
    algorithm: Algorithm,
    lease: bool,
}

/// When hits come, in microseconds from the start, and whose they are.
struct Traffic {
    name: &'static str,
    hits: Vec<(u64, &'static str)>,
}

/// The moments at which hits of the first client passed, and how many of all there were.
struct Passed {
    first: Vec<u64>,
    all: usize,
}

fn modes() -> Result<Vec<Mode>, LimitError> {
    let log = |log_entries| Algorithm::SlidingWindowLog { log_entries };
    let mode = |name, colour, algorithm, lease| Mode { name, colour, algorithm, lease };
    Ok(vec![
        mode("fixed_window", "#d95f02", Algorithm::FixedWindow, false),
        mode("token_bucket", "#7570b3", Algorithm::TokenBucket { burst: None }, false),
        mode("sliding_window_log", "#1b9e77", log(LogEntries::DEFAULT), false),
        // A tick is a second.
        mode("the same, with 11 entries", "#66a61e", log(LogEntries::new(11)?), false),
        mode("the same, leased by two servers", "#e7298a", log(LogEntries::LEASED), true),
        mode("fixed_window, leased by two servers", "#e6ab02", Algorithm::FixedWindow, true),
    ])
}

fn traffic() -> Vec<Traffic> {
    let every = |pause: u64, client| (0..LASTS / pause).map(move |number| (number * pause + pause / 2, client));
    let burst = |from: u64| (0..LIMIT as u64).map(move |number| (from + number * HALF_A_SECOND / LIMIT as u64, "a"));
    let mut two: Vec<_> = every(50_000, "a").chain(every(250_000, "b")).collect();
    two.sort_unstable();
    // The window of the clock begins with the traffic: a burst before its end, and one after.
    let edge = (1..5).flat_map(|edge| burst(edge * WINDOW - HALF_A_SECOND).chain(burst(edge * WINDOW)));
    vec![
        Traffic { name: "steady, 12 a second", hits: every(83_333, "a").collect() },
        Traffic { name: "100 in half a second, before and after each edge of the window", hits: edge.collect() },
        Traffic { name: "two clients, 20 and 4 a second: the one of 20", hits: two },
        Traffic { name: "hot, 200 a second", hits: every(5_000, "a").collect() },
    ]
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(address), Some(file)) = (arguments.next(), arguments.next()) else {
        return Err("how to: cargo run --example compare -- REDIS_ADDRESS FILE.svg".into());
    };
    // Counters of its own, whoever else is there.
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let mut svg = Svg::new(&modes()?);
    println!("| traffic (limit {LIMIT} per {} s) | counted by | passed of asked | most in one window |", WINDOW / 1_000_000);
    println!("|---|---|---|---|");
    for (row, traffic) in traffic().iter().enumerate() {
        for mode in modes()? {
            let prefix = format!("compare-{run}-{row}-{}:", mode.name.replace(' ', "-"));
            let passed = play(traffic, &mode, &address, &prefix).await?;
            let most = passed.first.iter().map(|at| in_window(&passed.first, *at)).max().unwrap_or_default();
            println!("| {} | {} | {} of {} | {most} |", traffic.name, mode.name, passed.all, traffic.hits.len());
            svg.line(row, &mode, &passed.first);
        }
        svg.title(row, traffic.name);
    }
    std::fs::write(&file, svg.finish())?;
    Ok(())
}

/// Plays the traffic. Leased, every other hit goes to another server.
async fn play(traffic: &Traffic, mode: &Mode, address: &str, prefix: &str) -> Result<Passed, Box<dyn Error>> {
    // The next window: not in the past, by which Redis expires keys, and not long after it, so that it forgets them soon.
    let start = (SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64 / WINDOW + 1) * WINDOW;
    let clock = SteppedClock::starting_at(start);
    let server = || {
        let (key_prefix, clock) = (prefix.to_owned(), Clock::Stepped(clock.clone()));
        let options = RedisOptions { key_prefix, denials_max: 0, clock, ..RedisOptions::new(address, Duration::from_secs(5)) };
        Redis::new(&options, RedisSeries::detached()).map(Store::Redis)
    };
    let servers = [server()?, server()?];
    let mut passed = Passed { first: Vec::new(), all: 0 };
    for (number, (at, client)) in traffic.hits.iter().enumerate() {
        clock.set(start + at);
        let hit = Hit {
            descriptor: 0,
            kind: Kind::Enforce,
            counter: Counter {
                domain: "compare",
                client: [*client].into_iter().collect(),
                action: Action::named("hit"),
                algorithm: mode.algorithm,
                window: Window::from_micros(WINDOW)?,
            },
            limit: Limit::from(LIMIT),
            cost: Cost::take(1),
            count_denied: false,
            on_store_failure: None,
            lease: if mode.lease { Some(Lease::percent_of(Limit::from(LIMIT), 10.0)) } else { None },
        };
        let server = &servers[if mode.lease { number % 2 } else { 0 }];
        if server.decide(&[hit], None).await?.admitted {
            passed.all += 1;
            if *client == "a" {
                passed.first.push(*at);
            }
        }
        if number % 20 == 0 {
            servers.iter().for_each(Store::sweep_leases);
        }
    }
    for server in &servers {
        server.drain().await;
    }
    Ok(passed)
}

/// How many of the hits lie in the window that ends at a moment.
fn in_window(hits: &[u64], end: u64) -> usize {
    hits.partition_point(|at| *at <= end) - hits.partition_point(|at| at + WINDOW <= end)
}

/// A panel for each traffic: hits that passed in the last window, over time.
struct Svg(String);

const PANEL: (f64, f64) = (440.0, 230.0);
const MARGIN: f64 = 44.0;
/// A line of the legend.
const LEGEND: f64 = 20.0;
/// Twice the limit, and a little more.
const TOP: f64 = 220.0;

impl Svg {
    fn new(modes: &[Mode]) -> Self {
        let (width, height) = (2.0 * (PANEL.0 + MARGIN) + MARGIN, 2.0 * (PANEL.1 + 1.6 * MARGIN) + MARGIN + LEGEND);
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        for (number, mode) in modes.iter().enumerate() {
            let x = MARGIN + (number % 3) as f64 * 320.0;
            let y = height - 14.0 - LEGEND + (number / 3) as f64 * LEGEND;
            text.push_str(&format!("<rect x=\"{x}\" y=\"{}\" width=\"14\" height=\"4\" fill=\"{}\"/>", y - 6.0, mode.colour));
            text.push_str(&format!("<text x=\"{}\" y=\"{y}\">{}</text>\n", x + 20.0, mode.name));
        }
        Self(text)
    }

    fn place(row: usize, at: u64, hits: f64) -> (f64, f64) {
        let left = MARGIN + (row % 2) as f64 * (PANEL.0 + MARGIN);
        let bottom = (row / 2) as f64 * (PANEL.1 + 1.6 * MARGIN) + MARGIN + PANEL.1;
        (left + at as f64 / LASTS as f64 * PANEL.0, bottom - hits / TOP * PANEL.1)
    }

    fn line(&mut self, row: usize, mode: &Mode, passed: &[u64]) {
        let mut points = String::new();
        for at in (0..=LASTS).step_by(250_000) {
            let (x, y) = Self::place(row, at, in_window(passed, at) as f64);
            let _ = write!(points, "{x:.1},{y:.1} "); // to a String, it can't fail
        }
        self.0.push_str(&format!("<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\" points=\"{points}\"/>\n", mode.colour));
    }

    fn title(&mut self, row: usize, name: &str) {
        let (left, bottom) = Self::place(row, 0, 0.0);
        let (right, limit) = Self::place(row, LASTS, f64::from(LIMIT));
        let top = bottom - PANEL.1;
        self.0.push_str(&format!("<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{name}</text>\n", top - 10.0));
        self.0.push_str(&format!("<path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"black\"/>\n"));
        self.0.push_str(&format!("<path d=\"M{left} {limit}H{right}\" stroke=\"black\" stroke-dasharray=\"4 4\"/>\n"));
        for hits in [0, LIMIT, 2 * LIMIT] {
            let (_, y) = Self::place(row, 0, f64::from(hits));
            self.0.push_str(&format!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{hits}</text>\n", left - 6.0, y + 4.0));
        }
        for window in 0..=LASTS / WINDOW {
            let (x, _) = Self::place(row, window * WINDOW, 0.0);
            let seconds = window * WINDOW / 1_000_000;
            self.0.push_str(&format!("<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{seconds} s</text>\n", bottom + 16.0));
        }
    }

    fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}
