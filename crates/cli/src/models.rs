//! `mlxcel download`, `list` and `rm`: models in the local Hugging Face cache.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use mlxcel_estimator::{DEFAULT_CONTEXT_TOKENS, Workload, format_bytes};
use mlxcel_hub::{self as hub, Download, DownloadPlan, Hub, LIST_SCHEMA, ModelEntry};
use mlxcel_runtime::preflight::{ModelFootprint, this_machine};
use serde_json::json;

use crate::terminal::{Bars, Interrupt, Unit, note, print};

/// Arguments of `mlxcel download`.
#[derive(clap::Args)]
#[command(
    after_help = "Models go to the cache that the Hugging Face tools use. HF_TOKEN, HF_ENDPOINT \
    and HF_HUB_OFFLINE have the same meaning as for those tools. Interrupted downloads are resumed."
)]
pub(crate) struct DownloadArgs {
    /// Name of the model on the hub
    #[arg(value_name = "ORG/NAME")]
    name: String,
    /// Branch, tag or commit
    #[arg(long, default_value = "main", value_name = "R")]
    revision: String,
    /// Only download matching files, such as '*.json' (may be repeated) [default: the files needed to
    /// run the model]
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Do not ask before downloading a model that does not fit into memory
    #[arg(short, long)]
    yes: bool,
    /// Print only errors and the resulting folder
    #[arg(short, long)]
    quiet: bool,
}

/// Arguments of `mlxcel list`.
#[derive(clap::Args)]
pub(crate) struct ListArgs {
    /// Print JSON (schema mlxcel.list/1)
    #[arg(long)]
    json: bool,
}

/// Arguments of `mlxcel rm`.
#[derive(clap::Args)]
pub(crate) struct RemoveArgs {
    /// Models to remove, with all their revisions
    #[arg(value_name = "ORG/NAME", required = true)]
    names: Vec<String>,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
}

/// Runs `mlxcel download`.
pub(crate) fn download(args: &DownloadArgs) -> Result<ExitCode> {
    let Some(folder) = fetch(args, &Interrupt::install()?)? else { return Ok(ExitCode::FAILURE) };
    print(&format!("{}\n", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// At a terminal, offers to download `name`. `None` if there is no terminal or the answer is no.
pub(crate) fn offer(name: &str) -> Result<Option<PathBuf>> {
    let asks = io::stdin().is_terminal() && io::stderr().is_terminal();
    if !asks || !confirmed(&format!("{name} is not on this machine. Download it?"))? {
        return Ok(None);
    }
    let args = DownloadArgs {
        name: name.to_owned(),
        revision: "main".to_owned(),
        include: Vec::new(),
        yes: false,
        quiet: false,
    };
    fetch(&args, &Interrupt::install()?)
}

fn fetch(args: &DownloadArgs, interrupt: &Interrupt) -> Result<Option<PathBuf>> {
    let hub = Hub::from_env();
    let DownloadArgs { name, revision, include, .. } = args;
    let planned = hub.plan(&Download { name, revision, include })?;
    if !args.quiet {
        announce(&planned);
    }
    if include.is_empty() && planned.missing_bytes > 0 && !confirm_size(args, &hub, &planned)? {
        return Ok(None);
    }
    let mut bars = Bars::new(interrupt.clone()).quiet(args.quiet);
    let folder = hub.download(&planned, &mut |_: &str, done, total| {
        bars.show("download", Unit::Bytes, done, total);
        interrupt.flow()
    })?;
    Ok(Some(folder))
}

fn announce(planned: &DownloadPlan) {
    eprintln!(
        "{}: {} files, {}, of which {} will be downloaded",
        planned.info.name,
        planned.files.len(),
        format_bytes(planned.total_bytes()),
        format_bytes(planned.missing_bytes),
    );
}

/// Estimates the model's memory from its headers. If it does not fit, warns, and asks at a terminal.
fn confirm_size(args: &DownloadArgs, hub: &Hub, planned: &DownloadPlan) -> Result<bool> {
    let model = match hub.sized_from(&planned.info) {
        Ok((spec, weights)) => ModelFootprint { name: planned.info.name.clone(), spec, weights },
        Err(_) if args.quiet => return Ok(true),
        Err(error) => {
            note(&format!("cannot estimate the model's memory: {error}"));
            return Ok(true);
        }
    };
    let most = model.spec.max_context_tokens.unwrap_or(DEFAULT_CONTEXT_TOKENS);
    let context = DEFAULT_CONTEXT_TOKENS.min(most);
    let report = model.report(&Workload::uniform(context, 1), &this_machine(None)?)?;
    if report.fits != Some(false) {
        return Ok(true);
    }
    let verdict = format!("{} with {context} tokens: {}", args.name, report.verdict);
    if args.quiet {
        // Neither warnings nor questions are printed.
        ensure!(args.yes, "{verdict} (use --yes to download it anyway)");
        return Ok(true);
    }
    eprintln!("warning: {verdict}");
    let asks = !args.yes && io::stdin().is_terminal() && io::stderr().is_terminal();
    Ok(!asks || confirmed("Download it anyway?")?)
}

/// Runs `mlxcel list`.
pub(crate) fn list(args: &ListArgs) -> Result<ExitCode> {
    let cache = cache()?;
    let models = hub::list(&cache, &this_machine(None)?)?;
    if args.json {
        let json = json!({ "schema": LIST_SCHEMA, "cache": cache, "models": models });
        print(&(serde_json::to_string_pretty(&json)? + "\n"))?;
    } else if models.is_empty() {
        note(&format!(
            "no models in {}; use `mlxcel download ORG/NAME` to fetch one",
            cache.display()
        ));
    } else {
        print(&table(&models))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn cache() -> Result<PathBuf> {
    hub::default_cache()
        .context("no Hugging Face cache: set HF_HUB_CACHE, HF_HOME or HOME to a folder")
}

fn table(models: &[ModelEntry]) -> String {
    let width = models.iter().map(|model| model.name.len()).max().unwrap_or(0).max(5);
    let mut text = format!(
        "{:width$}  {:>10}  {:14}  {:>4}  {:>10}  fits now\n",
        "model", "on disk", "architecture", "bits", "in memory"
    );
    for model in models {
        let fits = match (&model.problem, model.fits) {
            (Some(problem), _) => problem,
            (None, Some(true)) => "yes",
            (None, Some(false)) => "no",
            (None, None) => "unknown",
        };
        text += &format!(
            "{:width$}  {:>10}  {:14}  {:>4}  {:>10}  {fits}\n",
            model.name,
            format_bytes(model.disk_bytes),
            model.model_type.as_deref().unwrap_or("-"),
            model.bits.map_or("-".to_owned(), |bits| bits.to_string()),
            model.total_bytes.map_or("-".to_owned(), format_bytes),
        );
    }
    text
}

/// Runs `mlxcel rm`.
pub(crate) fn remove(args: &RemoveArgs) -> Result<ExitCode> {
    if !args.yes {
        if !io::stdin().is_terminal() {
            bail!(
                "no terminal to ask for confirmation: use --yes to remove {}",
                args.names.join(", ")
            );
        }
        if !confirmed(&format!("Remove {}?", args.names.join(", ")))? {
            return Ok(ExitCode::FAILURE);
        }
    }
    let cache = cache()?;
    for name in &args.names {
        let bytes = hub::remove(&cache, name)?;
        eprintln!("removed {name}: freed {}", format_bytes(bytes));
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for confirmation; the default is no.
fn confirmed(question: &str) -> Result<bool> {
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
