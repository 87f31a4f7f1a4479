//! The machine under the measurement: which core does what, and what to say about it.

use std::path::Path;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::Failure;

/// The server, the bare handler and the raw primitive take turns on this core.
pub const SERVER_CORE: usize = 0;
/// The load comes from here.
pub const LOAD_CORE: usize = 1;

/// Pins the calling thread, and those that it starts from now on.
pub fn pin_to(core: usize) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set)
        .map_err(|error| Failure::new(format!("cannot run on core {core}: {error}; two cores are needed")))
}

/// CPU time that this process has used.
pub fn own_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// CPU time that another process has used, from proc(5); its unit is a hundredth of a second.
pub fn cpu_time_of(process: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    parse_cpu_time(&stat)
}

/// Memory of another process that is in RAM, from proc(5).
pub fn resident_bytes_of(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    parse_resident_bytes(&status)
}

pub fn cpu_model() -> String {
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| "unknown CPU".to_owned(), |(_, name)| name.trim().to_owned())
}

/// Whether the CPU has the instruction that doubles the rate of RSA.
pub fn has_ifma() -> bool {
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    information.lines().filter(|line| line.starts_with("flags")).any(|line| line.contains(" avx512ifma"))
}

pub fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Whether each session's threads have a share of the processor together (sched(7), autogroup), as they have unless turned off:
/// then priorities count among the server's threads, and not against what else there is, the kernel's threads included.
pub fn has_autogroup() -> bool {
    let enabled = std::fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled");
    enabled.is_ok_and(|enabled| enabled.trim() == "1")
}

/// Type of the file system that holds `path`.
pub fn file_system(path: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    parse_file_system(&mounts, &path)
}

fn parse_cpu_time(stat: &str) -> Option<Duration> {
    // The second field is the program's name, in parentheses, and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let user: u64 = fields.get(11)?.parse().ok()?;
    let system: u64 = fields.get(12)?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 10))
}

fn parse_resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

fn parse_file_system(mounts: &str, path: &Path) -> String {
    let mut best: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) = (before.split(' ').nth(4), after.split(' ').next()) else { continue };
        let covers = path.starts_with(point) && best.is_none_or(|(length, _)| point.len() >= length);
        if covers {
            best = Some((point.len(), kind));
        }
    }
    best.map_or_else(|| "unknown".to_owned(), |(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_an_odd_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 1";
        assert_eq!(parse_cpu_time(stat), Some(Duration::from_secs(2)));
        assert_eq!(parse_cpu_time("7 (a) S 1"), None);
    }

    #[test]
    fn resident_memory_is_found() {
        assert_eq!(parse_resident_bytes("Name:\tx\nVmRSS:\t    12 kB\nThreads:\t1\n"), Some(12_288));
        assert_eq!(parse_resident_bytes("Name:\tx\n"), None);
    }

    #[test]
    fn the_longest_mount_point_holds_the_path() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / /data rw shared:1 - tmpfs tmpfs rw\n";
        assert_eq!(parse_file_system(mounts, Path::new("/data/pool")), "tmpfs");
        assert_eq!(parse_file_system(mounts, Path::new("/database")), "ext4");
    }
}
