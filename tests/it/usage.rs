//! Memory, threads and descriptors of a process.

use std::fs;
use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Resident, in kB.
    pub memory: i64,
    pub threads: usize,
    pub descriptors: usize,
}

impl Usage {
    /// The process must run, and belong to this user.
    pub fn of(process: u32) -> Usage {
        let count = |kind| fs::read_dir(format!("/proc/{process}/{kind}")).unwrap().count();
        Usage {
            memory: memory_of(process).unwrap(),
            threads: count("task"),
            descriptors: count("fd"),
        }
    }
}

/// The names of a process's threads. The process must run.
pub fn thread_names(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    // A thread may end before its name is read.
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    let names = tasks.filter_map(|task| name(task.unwrap()));
    names.map(|name| name.trim_end().to_owned()).collect()
}

/// The CPU time that a process has used. The process must run.
pub fn cpu_time_of(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The program's name, in parentheses, may contain spaces. Linux counts in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<u64>().unwrap();
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

/// The resident memory of a process in kB, or none if the process has ended.
pub fn memory_of(process: u32) -> Option<i64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    resident.trim().strip_suffix(" kB")?.parse().ok()
}
