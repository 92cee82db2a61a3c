//! How hits are decided, in pure functions of hits, counters and times: the frame that decides a request as a whole
//! (decide) and a file for each algorithm, each with its twin in Lua for Redis. Where counters live is the stores' matter.

pub(super) mod decide;
pub(super) mod sliding_window_log;

/// The script that decides a batch in Redis, less its first line, which reads the time into `TIME`.
pub(super) const SCRIPT: &str = concat!(
    "local now = TIME[1] * 1000000 + TIME[2]\n",
    include_str!("algorithm/sliding_window_log.lua"),
    include_str!("algorithm/decide.lua")
);
