//! What the system tells of a process.

/// Bytes of it that are in memory.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    1_024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of KiB")
}
