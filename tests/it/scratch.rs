//! Directories for the files of one run.

use std::fs;
use std::path::{Path, PathBuf};

/// A directory for this process alone, below Cargo's directory for test output. It stays, so that
/// a failure can be examined; the next run removes it.
pub fn directory(name: &str) -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    for old in fs::read_dir(&all).into_iter().flatten().flatten() {
        if !Path::new("/proc").join(old.file_name()).exists() {
            let _ = fs::remove_dir_all(old.path());
        }
    }
    let directory = all.join(std::process::id().to_string());
    fs::create_dir_all(&directory).expect("Cargo's directory can be written to");
    directory
}
