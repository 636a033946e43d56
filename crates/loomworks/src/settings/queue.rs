//! Settings of the queue, and the arguments of `loomworks job`.

use clap::{Args, Subcommand, ValueEnum};
use loomworks_core::SecretString;
use loomworks_core::ids::JobId;

/// How jobs are carried out.
#[derive(Args, Debug, Clone)]
pub(crate) struct QueueSettings {
    /// Jobs that this process carries out at once.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=500), env = "LOOMWORKS_JOBS",
        value_name = "NUMBER", help_heading = "Jobs")]
    pub(crate) jobs: u16,

    /// Jobs of one tenant that all processes together carry out at once.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=500),
        env = "LOOMWORKS_JOBS_PER_TENANT", value_name = "NUMBER", help_heading = "Jobs")]
    pub(crate) jobs_per_tenant: u16,

    /// A Redis that makes wake-ups and limits faster: `redis://127.0.0.1:6379`. Everything works without it. One with
    /// a password belongs into the environment, a command line can be read by everybody on the machine.
    #[arg(long, env = "LOOMWORKS_REDIS", hide_env_values = true, value_parser = secret, value_name = "URL", help_heading = "Jobs")]
    pub(crate) redis: Option<SecretString>,

    /// Connections to that Redis at most.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000),
        env = "LOOMWORKS_REDIS_CONNECTIONS", value_name = "NUMBER", help_heading = "Jobs")]
    pub(crate) redis_connections: u16,
}

fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text))
}

#[derive(Subcommand, Debug)]
pub(crate) enum JobCommand {
    /// The jobs, newest first.
    List(JobFilter),
    /// One job.
    Show { job: JobId },
    /// Watch a job until it has ended.
    Follow { job: JobId },
    /// Try a job again that has failed or was cancelled, where it stopped.
    Retry {
        job: JobId,
        /// Watch it until it has ended.
        #[arg(long)]
        wait: bool,
    },
    /// Stop a job: at once if it waits, else before its next step.
    Cancel { job: JobId },
}

/// Which jobs are listed.
#[derive(Args, Debug)]
pub(crate) struct JobFilter {
    #[arg(long, default_value_t = 20)]
    pub(crate) limit: i64,
    /// Only these. `failed` ones wait for somebody to look at them.
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Option<JobState>,
    /// Only this kind: `provision`, `restore`, …
    #[arg(long)]
    pub(crate) kind: Option<String>,
    /// Only those of this tenant, by its id or subdomain.
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    #[arg(long, value_name = "QUEUE")]
    pub(crate) queue: Option<JobQueue>,
    /// Where the list before ended: its `next_cursor`.
    #[arg(long)]
    pub(crate) cursor: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
#[value(rename_all = "snake_case")]
pub(crate) enum JobState {
    Waiting,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
#[value(rename_all = "snake_case")]
pub(crate) enum JobQueue {
    HighPriority,
    Default,
    LowPriority,
}

impl JobFilter {
    /// The query that asks for it.
    pub(crate) fn query(&self) -> String {
        let name =
            |value: Option<clap::builder::PossibleValue>| value.map(|value| value.get_name().to_owned());
        let parts = [
            ("limit", Some(self.limit.to_string())),
            ("state", self.state.and_then(|state| name(state.to_possible_value()))),
            ("kind", self.kind.clone()),
            ("tenant", self.tenant.clone()),
            ("queue", self.queue.and_then(|queue| name(queue.to_possible_value()))),
            ("cursor", self.cursor.clone()),
        ];
        let parts =
            parts.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded(&value?))));
        parts.collect::<Vec<_>>().join("&")
    }
}

/// A value of a query: all but letters, digits and `-._~` as `%` and two digits.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |encoded, byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            encoded + &char::from(byte).to_string()
        }
        _ => encoded + &format!("%{byte:02X}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_one_value_of_the_query() {
        assert_eq!(encoded("a&b=c d/é"), "a%26b%3Dc%20d%2F%C3%A9");
    }
}
