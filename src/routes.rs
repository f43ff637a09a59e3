//! The routes of both endpoints.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::{Method, StatusCode};

use crate::blocking;
use crate::dashboard::ALERTS;
use crate::exposition::{Names, negotiate};
use crate::http::{self, Access, Broadcast, Reply, Route, Router};
use crate::net::{Network, QueryError};
use crate::page::{self, Link, runbook};
use crate::percent;
use crate::running::Running;

/// The routes on the metrics port.
pub(crate) fn metrics_router(running: &Arc<Running>) -> Router {
    let (scraped, reloaded) = (running.clone(), running.clone());
    let metrics = Route::get("/metrics", "Prometheus metrics", http::PLAIN_TEXT, move |request| {
        let (format, content_type) = negotiate(request.accept.as_deref(), scraped.since());
        let names = Names::new(percent::values(request.query.as_deref().unwrap_or_default(), "name[]"));
        Reply::ok(scraped.render(format, &names)).typed(content_type)
    });
    let metrics = Route { visitors: Some(running.visitors.clone()), ..metrics };
    let about = "POST: reload the configuration";
    let reload = Route::get("/-/reload", about, http::PLAIN_TEXT, move |_| match reloaded.reload() {
        Ok(text) => Reply::ok(text),
        Err(text) => Reply::new(StatusCode::INTERNAL_SERVER_ERROR, text),
    });
    let reload = reload.open_to(Access::Operator).with_method(Method::POST);
    let mut routes = vec![metrics, reload];
    if let Some(network) = &running.network {
        routes.extend(table_routes(network));
        routes.push(stream_route(network));
        routes.extend(blocking::routes(network));
    }
    routes.extend(page_routes(running, &routes));
    Router::new("exporter", routes)
}

/// The routes on the control socket.
pub(crate) fn control_router(network: &Arc<Network>) -> Router {
    Router::new("exporter", blocking::routes(network))
}

/// The page at `/`, the files that it loads, and its JSON. It links to `others`.
fn page_routes(running: &Arc<Running>, others: &[Route]) -> Vec<Route> {
    const STATUS: Link = Link { path: "/api/v1/status", about: "How the exporter is doing (JSON)" };
    let others = others.iter().filter(|route| route.method == Method::GET && !route.about.is_empty());
    let links = others.map(|route| Link { path: route.path, about: route.about });
    let links: Arc<[Link]> = links.chain([STATUS]).collect();
    let part =
        |path, content_type, text: &'static str| Route::get(path, "", content_type, move |_| Reply::ok(text));
    let shown = |path, about, content_type, bytes: fn(&Running, &[Link]) -> Bytes| {
        let (running, links) = (running.clone(), links.clone());
        Route::get(path, about, content_type, move |_| Reply::ok(bytes(&running, &links)))
    };
    let runbook = runbook();
    vec![
        shown("/", "How the exporter is doing, for a browser", http::HTML, |running, links| {
            running.status.html(|| running.snapshot(links))
        }),
        shown(STATUS.path, STATUS.about, http::JSON, |running, links| {
            running.status.json(|| running.snapshot(links))
        }),
        // The target of a link in an alert: the person woken by it need not know a password.
        Route::get(ALERTS, "", http::HTML, move |_| Reply::ok(runbook.clone())).open_to(Access::Open),
        part("/page.css", "text/css; charset=utf-8", page::STYLE).open_to(Access::Open),
        part("/page.js", "text/javascript; charset=utf-8", page::SCRIPT),
        part("/page.svg", "image/svg+xml", page::ICON).open_to(Access::Open),
    ]
}

/// Traffic by remote host and flow as JSON: too many for series. Also the totals.
fn table_routes(network: &Arc<Network>) -> Vec<Route> {
    type TableHandler = fn(&Network, &str) -> Result<String, QueryError>;
    let tables: [(&'static str, &'static str, TableHandler); 3] = [
        ("/api/v1/talkers", "Remote hosts by traffic (JSON; sortable, paged)", Network::talkers),
        ("/api/v1/flows", "Flows by traffic (JSON; sortable, paged)", Network::flows),
        (
            "/api/v1/stats",
            "Packets passed and dropped, in total and by interface (JSON)",
            Network::statistics,
        ),
    ];
    let route = |(path, about, table): (&'static str, &'static str, TableHandler)| {
        let network = network.clone();
        Route::get(path, about, http::JSON, move |request| {
            match table(&network, request.query.as_deref().unwrap_or_default()) {
                Ok(json) => Reply::ok(json),
                Err(err) => Reply::new(StatusCode::BAD_REQUEST, format!("{err}\n")),
            }
        })
    };
    tables.into_iter().map(route).collect()
}

/// The interval of statistics in a stream.
const STREAM_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum number of streams, so that most connections remain available to others.
const MAX_STREAMS: usize = 8;

/// A stream ends after this time, and clients that are still authorized can request it again.
const MAX_STREAM: Duration = Duration::from_secs(3600);

/// The statistics of `/api/v1/stats` as a stream.
fn stream_route(network: &Arc<Network>) -> Route {
    let network = network.clone();
    // Without a query, there is nothing to reject.
    let make = move || network.statistics("").unwrap_or_default();
    let stream = Broadcast::new(STREAM_INTERVAL, MAX_STREAMS, MAX_STREAM, Box::new(make));
    Route::get("/api/v1/stream", "", http::EVENTS, move |_| Reply::events(stream.clone()))
        .open_to(Access::Known)
}

/// The routes on the health port.
pub(crate) fn health_router(running: Arc<Running>) -> Router {
    let about = "Liveness: 200 while the exporter runs";
    let health = Route::get("/health", about, http::PLAIN_TEXT, |_| Reply::ok("ok\n"));
    let about = "Readiness: 200 once all probes and interfaces are attached, otherwise 503 with the reasons";
    let ready = Route::get("/ready", about, http::PLAIN_TEXT, move |_| match running.ready() {
        Ok(partly) => {
            let partly: String = partly.iter().map(|line| format!("{line}\n")).collect();
            Reply::ok(format!("ready\n{partly}"))
        }
        Err(reasons) => {
            Reply::new(StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{}\n", reasons.join("\n")))
        }
    });
    Router::new("exporter", [health, ready].map(|route| route.open_to(Access::Open)).into())
}
