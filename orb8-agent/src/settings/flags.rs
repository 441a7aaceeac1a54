//! Settings from the command line.
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

use super::{DEFAULT_FILE, DEFINITIONS, FILE_VARIABLE, Settings};

/// What the command line sets. A binary takes it with `#[command(flatten)]` and gives it to
/// [`Settings::from_flags`].
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub(super) config: Option<PathBuf>,
    /// By place in [`DEFINITIONS`].
    pub(super) values: Vec<(usize, String)>,
}

const HEADING: &str = "Settings";

fn arguments() -> impl Iterator<Item = Arg> {
    let defaults = Settings::default();
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help(format!(
            "TOML file with settings [env: {FILE_VARIABLE}] [default: {DEFAULT_FILE}, if it exists]"
        ))
        .help_heading(HEADING)
        .global(true);
    let settings = DEFINITIONS.iter().map(move |definition| {
        let default = (definition.show)(&defaults);
        let default = if default.is_empty() { "none" } else { &default };
        let help = definition
            .help
            .lines()
            .map(str::trim)
            .collect::<Vec<_>>()
            .join(" ");
        Arg::new(definition.key)
            .long(definition.names().flag())
            .value_name(definition.placeholder)
            .action(if definition.list {
                ArgAction::Append
            } else {
                ArgAction::Set
            })
            .help(format!(
                "{help} [env: {}] [default: {default}] [allowed: {}]",
                definition.names().variable(),
                (definition.allowed)()
            ))
            // Values are judged together with those of the environment and the file, by the same code.
            .value_parser(value_parser!(String))
            .allow_negative_numbers(true)
            .help_heading(HEADING)
            .global(true)
    });
    std::iter::once(config).chain(settings)
}

/// A command line of nothing but settings.
#[must_use]
pub fn command() -> Command {
    Flags::augment_args(Command::new("orb8-agent").version(env!("CARGO_PKG_VERSION")))
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        command.args(arguments())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self {
            config: matches.get_one::<PathBuf>("config").cloned(),
            values: Vec::new(),
        };
        for (index, definition) in DEFINITIONS.iter().enumerate() {
            let Some(values) = matches.get_many::<String>(definition.key) else {
                continue;
            };
            let value = values.map(String::as_str).collect::<Vec<_>>().join(",");
            flags.values.push((index, value));
        }
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let update = Self::from_arg_matches(matches)?;
        self.config = update.config.or(self.config.take());
        self.values
            .retain(|(index, _)| update.values.iter().all(|(updated, _)| updated != index));
        self.values.extend(update.values);
        Ok(())
    }
}
