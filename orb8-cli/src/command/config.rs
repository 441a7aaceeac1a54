//! `orb8 config`: contexts, shown and changed.

use anyhow::Context as _;

use crate::{
    args::{ConfigAction, ConfigArgs, TargetArgs},
    contexts::{Contexts, Saved},
    exit::{Outcome, Usage},
    render::table::{Cell, Column, Table},
    terminal::{self, Style},
};

pub(super) fn run(args: &ConfigArgs, target: &TargetArgs) -> anyhow::Result<Outcome> {
    let is_kept = matches!(args.action, ConfigAction::SetContext(_));
    if let Some(option) = ignored(target, is_kept) {
        return Err(Usage(format!(
            "{option} has no place here: `orb8 config` asks nobody, and a context does not keep it"
        ))
        .into());
    }
    let mut contexts = Contexts::read()?;
    let known = |contexts: &Contexts, name: &str| {
        let names: Vec<&str> = contexts.contexts.keys().map(String::as_str).collect();
        let told = match names.as_slice() {
            [] => "none is saved".to_owned(),
            names => format!("there are {}", names.join(", ")),
        };
        Usage(format!(
            "there is no context {name}: {told} (`orb8 config set-context NAME`)"
        ))
    };
    match &args.action {
        ConfigAction::SetContext(given) => {
            let is_new = !contexts.contexts.contains_key(&given.name);
            let saved = contexts.contexts.entry(given.name.clone()).or_default();
            change(saved, target, given.kube_context.as_ref())?;
            let in_cluster =
                saved.kubeconfig.is_some() || saved.kube_context.is_some() || saved.agent_namespace.is_some();
            if saved.server.is_some() && in_cluster {
                return Err(Usage(
                    "a context has a --server, or is reached through a kubeconfig: leave one out, or delete the context first"
                        .to_owned(),
                )
                .into());
            }
            if *saved == Saved::default() {
                return Err(Usage(
                    "what is the context to be? Give --server HOST:PORT, or --kubeconfig or --kube-context"
                        .to_owned(),
                )
                .into());
            }
            // The first one is meant.
            if contexts.contexts.len() == 1 && contexts.current.is_none() {
                contexts.current = Some(given.name.clone());
            }
            let path = contexts.write()?;
            let what = if is_new { "saved" } else { "changed" };
            terminal::say(&format!(
                "orb8: context {} {what} in {}",
                given.name,
                path.display()
            ));
        }
        ConfigAction::UseContext { name } if name == "-" => {
            contexts.current = None;
            contexts.write()?;
        }
        ConfigAction::UseContext { name } => {
            if !contexts.contexts.contains_key(name) {
                return Err(known(&contexts, name).into());
            }
            contexts.current = Some(name.clone());
            contexts.write()?;
        }
        ConfigAction::CurrentContext => match &contexts.current {
            Some(name) => println!("{name}"),
            None => {
                terminal::say("orb8: there is no current context (`orb8 config use-context NAME`)");
                return Ok(Outcome::Failed);
            }
        },
        ConfigAction::GetContexts => print!("{}", table(&contexts)),
        ConfigAction::DeleteContext { name } => {
            if contexts.contexts.remove(name).is_none() {
                return Err(known(&contexts, name).into());
            }
            if contexts.current.as_deref() == Some(name) {
                contexts.current = None;
            }
            contexts.write()?;
        }
    }
    Ok(Outcome::Done)
}

/// An option that would be ignored; `is_kept`: what a context has is not.
fn ignored(target: &TargetArgs, is_kept: bool) -> Option<&'static str> {
    let TargetArgs {
        agent,
        standalone,
        interface,
        server,
        cluster,
    } = target;
    let never = [
        ("--agent", !agent.is_empty()),
        ("--standalone", *standalone),
        ("--interface", !interface.is_empty()),
        ("--context", cluster.context.is_some()),
        ("--node", !cluster.node.is_empty()),
        ("--direct", cluster.direct),
    ];
    let kept = [
        ("--server", server.server.is_some()),
        ("--tls-ca", server.tls_ca.is_some()),
        ("--tls-cert", server.tls_cert.is_some()),
        ("--tls-key", server.tls_key.is_some()),
        ("--token-file", server.token_file.is_some()),
        ("--insecure", server.insecure),
        ("--kubeconfig", cluster.kubeconfig.is_some()),
        ("--agent-namespace", cluster.agent_namespace.is_some()),
    ];
    never
        .iter()
        .chain(kept.iter().filter(|_| !is_kept))
        .find_map(|(option, given)| given.then_some(*option))
}

/// Takes over what was typed. Paths are kept from the root: the file is read from anywhere.
fn change(saved: &mut Saved, target: &TargetArgs, kube_context: Option<&String>) -> anyhow::Result<()> {
    let TargetArgs { server, cluster, .. } = target;
    if let Some(address) = &server.server {
        saved.server = Some(address.to_string());
    }
    for (to, from) in [
        (&mut saved.tls_ca, &server.tls_ca),
        (&mut saved.tls_cert, &server.tls_cert),
        (&mut saved.tls_key, &server.tls_key),
        (&mut saved.token_file, &server.token_file),
        (&mut saved.kubeconfig, &cluster.kubeconfig),
    ] {
        if let Some(path) = from {
            let absolute = std::path::absolute(path);
            *to = Some(absolute.with_context(|| format!("the path {}", path.display()))?);
        }
    }
    saved.insecure |= server.insecure;
    if let Some(name) = kube_context {
        saved.kube_context = Some(name.clone());
    }
    if let Some(namespace) = &cluster.agent_namespace {
        saved.agent_namespace = Some(namespace.clone());
    }
    Ok(())
}

fn table(contexts: &Contexts) -> String {
    if contexts.contexts.is_empty() {
        return "No contexts. `orb8 config set-context NAME --server HOST:PORT` saves one.\n".to_owned();
    }
    let mut table = Table::new([
        Column::text(""),
        Column::text("NAME"),
        Column::text("SERVER"),
        Column::text("WHO ASKS"),
    ]);
    for (name, saved) in &contexts.contexts {
        let kubeconfig = || {
            let file = saved
                .kubeconfig
                .as_ref()
                .map_or("the kubeconfig".to_owned(), |path| path.display().to_string());
            match &saved.kube_context {
                Some(context) => format!("{file}, context {context}"),
                None => file,
            }
        };
        let who = match (&saved.tls_cert, &saved.token_file) {
            (Some(certificate), _) => certificate.display().to_string(),
            (None, Some(token)) => format!("token in {}", token.display()),
            (None, None) if saved.server.is_some() => "nobody".to_owned(),
            (None, None) => "the kubeconfig's user".to_owned(),
        };
        table.row([
            Cell::new(if contexts.current.as_ref() == Some(name) {
                "*"
            } else {
                ""
            }),
            Cell::new(name),
            Cell::new(saved.server.clone().unwrap_or_else(kubeconfig)),
            Cell::new(who),
        ]);
    }
    table.render(None, &Style::of_stdout())
}
