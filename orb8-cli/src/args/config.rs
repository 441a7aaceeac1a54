//! `orb8 config`.

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};

const EXAMPLES: &str = "\
Examples:
  orb8 config set-context prod --server orb8.example.com:8080 --tls-ca ca.crt --tls-cert me.crt \\
      --tls-key me.key
  orb8 config set-context lab --kubeconfig ~/.kube/lab --kube-context admin
  orb8 config use-context prod
  orb8 --context lab nodes

The file is $ORB8_CONFIG, else $XDG_CONFIG_HOME/orb8/config.toml, else ~/.config/orb8/config.toml.";

/// Options of `config`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) action: ConfigAction,
}

/// What to do with contexts.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigAction {
    /// Save a context, or change what is given of one
    SetContext(Box<SetContextArgs>),
    /// Make a context the one that is used where nothing else is asked for
    UseContext {
        /// Its name; `-`: none
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// Show all contexts
    GetContexts,
    /// Show the name of the current context
    CurrentContext,
    /// Delete a context
    DeleteContext {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
}

/// What a context has. Named apart from the options that ask, which are global.
#[derive(Args, Debug)]
pub(crate) struct SetContextArgs {
    /// Its name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) name: String,
    /// The context of the kubeconfig through which server and agents are reached
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) kube_context: Option<String>,
}
