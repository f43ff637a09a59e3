//! The data for the status page: the metrics of a scrape, without being one.

use std::sync::Arc;
use std::time::Instant;

use super::Running;
use super::active::ActiveConfig;
use crate::clock::unix_now;
use crate::config::endpoint::{Listen, ListenAddress};
use crate::http::Demand;
use crate::page::{self, Connect, Link, MAX_METRICS, MAX_TALKERS, ScrapeAccess, Snapshot, connect};

impl Running {
    /// Returns the current values of all metrics. This does not change what scrapers see: no window of extremes ends,
    /// and nothing is forgotten.
    pub fn snapshot(&self, links: &[Link]) -> Snapshot {
        let at = Instant::now();
        let (mut metrics, mut more_metrics) = (Vec::new(), 0);
        let (telemetry, missing, series) = {
            let mut state = self.state();
            let ActiveConfig { engines, registry, .. } = &mut *state;
            let plan = &engines.plan;
            let status = engines.status();
            let node = &plan.settings.node_name;
            registry.look(&status.facts(), |head, samples| {
                if metrics.len() < MAX_METRICS {
                    metrics.push(page::metric(head, samples, node));
                } else {
                    more_metrics += 1;
                }
            });
            let series = registry.live_series();
            let missing = status.missing(plan);
            (self.telemetry(&state, Arc::new(status)), missing, series)
        };
        let plan = &telemetry.plan;
        let named = |probe: usize| {
            let probe = &plan.probes[probe];
            (plan.targets[probe.target].name.clone(), probe.name.clone())
        };
        let network = self.network.as_ref().map(|network| {
            let families = network.collect();
            (families, network.not_ready())
        });
        let blocked = self.network.iter().flat_map(|network| network.busiest_blocked(MAX_TALKERS));
        let talkers = self.network.iter().flat_map(|network| network.top_talkers(MAX_TALKERS));
        Snapshot {
            at,
            time: unix_now(),
            targets: plan.targets.iter().map(|target| target.name.clone()).collect(),
            missing: missing.into_iter().map(named).collect(),
            metrics,
            more_metrics,
            series,
            network,
            talkers: talkers.collect(),
            blocked: blocked.collect(),
            slow: self.recorder.recent(),
            visitors: self.visitors.all(),
            connect: self.connect(),
            links: links.to_vec(),
            own: telemetry.collect(),
        }
    }

    fn connect(&self) -> Connect {
        let source = self.web();
        let web = &source.web;
        let port = match &self.started.listen {
            Listen::Addresses(all) => all.iter().find_map(|address| match address {
                ListenAddress::Tcp { port, .. } => Some(*port),
                ListenAddress::Unix(_) => None,
            }),
            Listen::Port | Listen::Inherited => None,
        };
        connect(&ScrapeAccess {
            node: &self.started.node_name,
            port: port.unwrap_or(self.started.metrics_port),
            has_tls: web.tls.is_some(),
            wants_certificate: web
                .tls
                .as_ref()
                .is_some_and(|tls| matches!(tls.client_auth, Demand::RequireAny | Demand::RequireAndVerify)),
            user: web.users.first().map(|user| user.username.as_str()),
        })
    }
}
