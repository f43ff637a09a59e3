//! Where a probe's values are located, according to notes or the calling convention.

use crate::arguments::{is_kept, name};
use crate::config::model::Point;
use crate::elf::{Image, usdt_sites};
use crate::plan::{Pairing, ProbeHook, ProbePlan, SpanEnd, SpanPlan, ValuePlan, ValueSource};
use crate::resolve::{ResolveError, Resolved};

/// Notes shown for one argument at most; inlining can produce hundreds of sites.
const MAX_NOTES: usize = 4;

/// What the notes, or the calling convention, say about a probe's arguments.
#[derive(Debug)]
pub(super) struct Notes {
    /// The argument formats at each site, by argument.
    sites: Vec<Vec<String>>,
    /// All arguments at the first site.
    pub(super) whole: Option<String>,
    pub(super) is_function: bool,
}

impl Notes {
    /// The notes of the resolved sites, or of the image.
    pub(super) fn of(
        image: Option<&Image<'_>>,
        probe: &ProbePlan,
        resolved: Option<&Result<Resolved, ResolveError>>,
    ) -> Self {
        let Point::Usdt { provider, name } = &probe.point else {
            let sites =
                resolved.and_then(|resolved| resolved.as_ref().ok()).map(|found| found.arguments.clone());
            return Self { sites: sites.unwrap_or_default(), whole: None, is_function: true };
        };
        let found = image.and_then(|image| usdt_sites(image, provider, name).ok()).unwrap_or_default();
        let sites: Vec<Vec<String>> = found
            .into_iter()
            .map(|site| {
                site.args
                    .into_iter()
                    .map(|arg| match arg {
                        Ok(form) => form.text,
                        Err(error) => error.text,
                    })
                    .collect()
            })
            .collect();
        let whole = sites.first().map(|args| args.join(" "));
        Self { sites, whole, is_function: false }
    }

    /// Whether the arguments of a function are where the C calling convention puts them.
    pub(super) fn in_general_registers(&self) -> bool {
        self.is_function
            && self.sites.iter().any(|args| args.first().is_some_and(|place| place.starts_with("%rdi")))
    }

    /// `height = arg1 -4@24(%rcx)`, `service = arg0+40 %rdi`; only the name if the value is no argument. At the end of
    /// a call or
    /// span, also when it is read.
    pub(super) fn describe(&self, value: &ValuePlan, probe: &ProbePlan) -> String {
        let is_end = matches!(probe.span, Some(SpanPlan { end: SpanEnd::End, .. }));
        let (start, end) =
            if probe.hook == ProbeHook::Return { ("entry", "return") } else { ("start", "end") };
        let when = match value.source {
            ValueSource::Carried(_) => format!(", read at the {start}"),
            ValueSource::Duration => String::new(),
            _ if is_kept(value) => match probe.span {
                Some(SpanPlan { by: Pairing::Frame, .. }) => ", kept for the return".to_string(),
                _ => ", kept for the end".to_string(),
            },
            _ if is_end => format!(", read at the {end}"),
            _ => String::new(),
        };
        self.locate(value) + &when
    }

    fn locate(&self, value: &ValuePlan) -> String {
        let (index, offset) = match value.source {
            ValueSource::Arg(index) => (index, String::new()),
            ValueSource::Field { index, offset } => (index, format!("{offset:+}")),
            ValueSource::Retval(_) => return format!("{} = %rax", name(value)),
            ValueSource::ResultField { offset } => return format!("{} = {offset}(%rax)", name(value)),
            _ => return name(value).to_string(),
        };
        let mut forms: Vec<&str> = Vec::new();
        for form in self.sites.iter().filter_map(|args| args.get(index)) {
            if !forms.contains(&form.as_str()) {
                forms.push(form);
            }
        }
        let more = if forms.len() > MAX_NOTES { " or ..." } else { "" };
        forms.truncate(MAX_NOTES);
        let text = format!("{} = arg{index}{offset} {}{more}", name(value), forms.join(" or "));
        text.trim_end().to_string()
    }
}
