//! Memory, threads and descriptors of a process.

use std::fs;

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

/// The resident memory of a process in kB, or none if the process has ended.
pub fn memory_of(process: u32) -> Option<i64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    resident.trim().strip_suffix(" kB")?.parse().ok()
}
