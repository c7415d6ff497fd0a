//! What a process takes of the machine.

use std::fs;

#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Resident, in kB.
    pub memory: i64,
    pub threads: usize,
    pub descriptors: usize,
}

impl Usage {
    /// Of a process that runs, and is this user's.
    pub fn of(process: u32) -> Usage {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|line| line.trim().strip_suffix(" kB")).unwrap();
        let count = |kind| fs::read_dir(format!("/proc/{process}/{kind}")).unwrap().count();
        Usage {
            memory: resident.parse::<i64>().unwrap(),
            threads: count("task"),
            descriptors: count("fd"),
        }
    }
}
