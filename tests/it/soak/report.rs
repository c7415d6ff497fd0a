//! The result of a soak, as a table.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::time::Duration;

use super::totals::{GROWN, LEFT_OVER, NO_OUTCOME, Totals, UNACKED, VIOLATIONS};
use super::{Growth, Service};

pub struct Report {
    pub seed: u64,
    pub took: Duration,
    pub path: PathBuf,
    pub totals: Totals,
    pub history: History,
}

/// What has happened so far in the run.
#[derive(Default)]
pub struct History {
    /// The kind of each fault or pair of faults, and the longest time that a client got no answer
    /// to idempotent calls of a service, although the broker could answer: to calls with signs of
    /// life, and to those without, for which a lost request shows only at the deadline.
    pub faults: Vec<(String, [Duration; 2])>,
    pub growth: Vec<Growth>,
    /// The longest time by which the machine woke a thread of the soak too late. No time in the
    /// table is more precise than this.
    pub wake_up_delay: Duration,
    /// Whether the run reached its end. Some violations are looked for only there.
    pub is_complete: bool,
}

impl Report {
    pub fn is_good(&self) -> bool {
        self.totals.violations.is_empty()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Report { seed, took, path, totals, history } = self;
        let faults = history.faults.len();
        writeln!(f, "seed {seed}: {faults} faults in {:.0} s", took.as_secs_f64())?;
        writeln!(f, "all calls, and what the processes logged: {}.csv, .log", path.display())?;
        self.calls(f)?;
        self.by_fault(f)?;
        writeln!(
            f,
            "\n{:<42}{:>10}{:>9}{:>13}",
            "growth in the second half", "memory", "threads", "descriptors"
        )?;
        for Growth { name, before, after } in &history.growth {
            let memory = format!("{:+} kB", after.memory - before.memory);
            let threads = after.threads as i64 - before.threads as i64;
            let descriptors = after.descriptors as i64 - before.descriptors as i64;
            writeln!(f, "  {name:<40}{memory:>10}{threads:>+9}{descriptors:>+13}")?;
        }
        writeln!(f, "\n{:<42}{:>10}", "violations", "")?;
        for heading in VIOLATIONS {
            let at_the_end = [NO_OUTCOME, UNACKED, LEFT_OVER, GROWN].contains(&heading);
            match totals.violations.get(heading).map_or(0, Vec::len) {
                0 if at_the_end && !history.is_complete => {
                    writeln!(f, "  {heading:<36}not looked at")?;
                }
                count => writeln!(f, "  {heading:<40}{count:>10}")?,
            }
        }
        writeln!(f, "\nlatest wake-up of a thread: {:.2} s", history.wake_up_delay.as_secs_f64())?;
        match self.is_good() {
            true => writeln!(f, "good"),
            false => writeln!(f, "NOT GOOD; to repeat its faults: scripts/soak.sh MINUTES {seed}"),
        }
    }
}

impl Report {
    fn calls(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let totals = &self.totals;
        write!(f, "\n{:<42}", "calls")?;
        Service::ALL.iter().try_for_each(|service| write!(f, "{:>12}", service.name()))?;
        write!(f, "\n  {:<40}", "right answers")?;
        for service in Service::ALL {
            write!(f, "{:>12}", totals.right.get(&service).unwrap_or(&0))?;
        }
        let kinds: std::collections::BTreeSet<_> =
            totals.errors.keys().map(|(_, kind)| kind).collect();
        for kind in kinds {
            write!(f, "\n  {kind:<40}")?;
            for service in Service::ALL {
                write!(f, "{:>12}", totals.errors.get(&(service, kind.clone())).unwrap_or(&0))?;
            }
        }
        writeln!(f, "\n  {:<40}{:>12}", "client killed", totals.client_killed)?;
        writeln!(f, "  {:<40}{:>12}", "all", totals.calls)?;
        let by: Vec<String> = totals.by.iter().map(|(by, count)| format!("{by} {count}")).collect();
        writeln!(f, "  answered by {}", by.join(", "))
    }

    fn by_fault(&self, f: &mut Formatter<'_>) -> fmt::Result {
        /// For calls with signs of life. A machine that does much else takes longer, so more than
        /// this is no violation.
        const GOAL: Duration = Duration::from_secs(6);
        writeln!(
            f,
            "\n{:<42}{:>10}{:>28}{:>22}",
            "fault", "times", "longest without an answer", "no signs of life"
        )?;
        let mut kinds: BTreeMap<&str, (u32, [Duration; 2])> = BTreeMap::new();
        for (kind, gaps) in &self.history.faults {
            let (times, longest) = kinds.entry(kind).or_default();
            *times += 1;
            *longest = [0, 1].map(|column| gaps[column].max(longest[column]));
        }
        for (kind, (times, longest)) in kinds {
            let [with_signs, without] = longest.map(|gap| gap.as_secs_f64());
            let goal = if longest[0] > GOAL { "  more than the goal of 6 s" } else { "" };
            writeln!(f, "  {kind:<42}{times:>8}{with_signs:>26.2} s{without:>20.2} s{goal}")?;
        }
        Ok(())
    }
}
