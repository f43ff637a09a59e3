//! USDT probes, by provider.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::CostWord;
use crate::elf::{ElfError, Image, Site, usdt_sites};
use crate::unusable::unusable_reason;

/// Probes of one provider, by name.
#[derive(Debug, Clone, Serialize)]
pub struct Provider {
    pub provider: String,
    pub probes: Vec<Probe>,
}

/// One probe at all its sites.
#[derive(Debug, Clone, Serialize)]
pub struct Probe {
    pub name: String,
    pub sites: usize,
    /// Number of sites that have a semaphore.
    pub semaphores: usize,
    /// The cost at the most expensive site.
    pub cost: CostWord,
    pub args: Vec<Argument>,
    /// Why it cannot be traced at all; `None` if it can.
    pub unusable: Option<String>,
}

/// One argument at all sites of its probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Argument {
    /// `u64`, `i32`, `f64` and the like, more than one if sites differ; `?` for a format that is not supported.
    pub types: Vec<String>,
    /// As written in the notes: one for each format.
    pub forms: Vec<String>,
    /// Why it cannot be read; `None` if it can be read at every site.
    pub unreadable: Option<String>,
}

/// Returns all USDT probes of a program.
///
/// # Errors
/// If it has none, or its notes are malformed.
pub(super) fn providers(image: &Image<'_>) -> Result<Vec<Provider>, ElfError> {
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for note in image.notes()? {
        names.entry(note.provider).or_default().insert(note.name);
    }
    let all = names.into_iter().map(|(provider, names)| {
        let probes = names.into_iter().map(|name| probe(image, &provider, name)).collect();
        Provider { provider, probes }
    });
    Ok(all.collect())
}

fn probe(image: &Image<'_>, provider: &str, name: String) -> Probe {
    match usdt_sites(image, provider, &name) {
        Ok(sites) => Probe {
            name,
            sites: sites.len(),
            semaphores: sites.iter().filter(|site| site.ref_ctr_offset != 0).count(),
            cost: sites.iter().map(|site| CostWord::of(site.cost())).max().unwrap_or(CostWord::Cheap),
            args: arguments(&sites),
            unusable: unusable(&sites),
        },
        Err(err) => Probe {
            name,
            sites: 0,
            semaphores: 0,
            cost: CostWord::NeverFires,
            args: Vec::new(),
            unusable: Some(err.to_string()),
        },
    }
}

/// Why the probe cannot be used: a bad site makes only that site unusable.
fn unusable(sites: &[Site]) -> Option<String> {
    let reason = |site: &Site| {
        unusable_reason(site).map(|err| format!("the site at file offset {:#x}: {err}", site.offset))
    };
    let reasons: Option<Vec<String>> = sites.iter().map(reason).collect();
    reasons?.into_iter().next()
}

fn arguments(sites: &[Site]) -> Vec<Argument> {
    let most = sites.iter().map(|site| site.args.len()).max().unwrap_or(0);
    (0..most).map(|index| argument(sites, index)).collect()
}

fn argument(sites: &[Site], index: usize) -> Argument {
    let mut described = Argument { types: Vec::new(), forms: Vec::new(), unreadable: None };
    for site in sites {
        let (kind, text, reason) = match site.args.get(index) {
            Some(Ok(form)) => {
                let sign = if form.float {
                    'f'
                } else if form.signed {
                    'i'
                } else {
                    'u'
                };
                (format!("{sign}{}", u32::from(form.size) * 8), form.text.clone(), form.unreadable())
            }
            Some(Err(error)) => {
                ("?".to_string(), error.text.clone(), Some(format!("`{}`: {}", error.text, error.reason)))
            }
            None => {
                let reason = format!("the site at file offset {:#x} does not have it", site.offset);
                described.unreadable.get_or_insert(reason);
                continue;
            }
        };
        if !described.types.contains(&kind) {
            described.types.push(kind);
        }
        if !described.forms.contains(&text) {
            described.forms.push(text);
        }
        if let Some(reason) = reason {
            described.unreadable.get_or_insert(reason);
        }
    }
    described
}

impl Argument {
    /// `u64`, or `i32|u32` where sites differ.
    pub fn type_word(&self) -> String {
        self.types.join("|")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::{Arch, SiteShape, parse_args};

    fn site(args: &str) -> Site {
        let args = parse_args(Arch::X86_64, args);
        Site { offset: 0x10, ref_ctr_offset: 0, vaddr: 0x10, args, shape: SiteShape::Nop }
    }

    #[test]
    fn differing_sites_are_shown_together() {
        let args = arguments(&[site("-4@$-1 8@%rax"), site("4@$-1 8@%rax")]);
        assert_eq!(args[0].type_word(), "i32|u32");
        assert_eq!(args[0].forms, ["-4@$-1", "4@$-1"]);
        assert_eq!((args[1].type_word().as_str(), args[1].forms.len()), ("u64", 1));
        assert!(args.iter().all(|arg| arg.unreadable.is_none()));
    }

    #[test]
    fn unreadable_arguments_quote_the_note() {
        let args = arguments(&[site("8f@%xmm0 4@%ah -8@nowhere(%rip)"), site("8@%rax")]);
        let reason = |index: usize| args[index].unreadable.clone().unwrap_or_default();
        assert_eq!(args[0].type_word(), "f64|u64");
        assert!(reason(0).contains("`8f@%xmm0` is a floating-point number"), "{}", reason(0));
        assert_eq!(args[1].type_word(), "?");
        assert!(reason(1).contains("`4@%ah`"), "{}", reason(1));
        assert!(reason(2).contains("nowhere"), "{}", reason(2));
    }

    #[test]
    fn probe_is_unusable_only_if_all_sites_are() {
        let refused = Site { shape: SiteShape::Refused("it has a lock prefix"), ..site("") };
        assert_eq!(unusable(&[site(""), refused.clone()]), None);
        assert!(unusable(&[refused.clone(), refused]).is_some_and(|err| err.contains("0x10: ")));
    }

    #[test]
    fn argument_missing_at_one_site_is_unreadable() {
        let args = arguments(&[site("8@%rax"), site("")]);
        assert!(args[0].unreadable.as_deref().is_some_and(|err| err.contains("0x10 does not have it")));
    }
}
