//! Turns requests into responses.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::auth::user_of;
use super::budget::Budget;
use super::coding::Coding;
use super::limits::Limits;
use super::listener::Peer;
use super::rate::{Limiter, Rate};
use super::route::{Access, Caller, LocalPeer, RequestInfo, Route, RouteMatch, Router};
use super::security::{Secured, Security};
use super::stats::{HttpStats, RaisedGauge, count};
use super::stream::EventStream;
use super::watch::Watch;
use super::watched::WatchedBody;
use super::{HTML, Level, PLAIN_TEXT, Report, coding, notify};

/// The state shared by all connections of one listener.
pub(super) struct Answerer {
    pub(super) router: Router,
    pub(super) security: Arc<Security>,
    /// Whether the endpoint is an [`super::EndpointKind::Control`].
    pub(super) is_control: bool,
    pub(super) limits: Arc<Limits>,
    pub(super) stats: Arc<HttpStats>,
    pub(super) report: Report,
    /// One permit per handler that may run at once.
    pub(super) handlers: Arc<Semaphore>,
    pub(super) budget: Arc<Budget>,
    pub(super) limiter: Limiter,
}

/// A response whose status is settled and whose body is ready to send.
struct Answer {
    /// The route label of the request counters: a path in the table, or `other`.
    route: &'static str,
    status: StatusCode,
    content_type: Cow<'static, str>,
    body: Bytes,
    coding: Option<Coding>,
    /// Sent instead of the body.
    events: Option<EventStream>,
    extra: Option<(header::HeaderName, HeaderValue)>,
}

/// The maximum size of a request body, in bytes.
const MAX_BODY: usize = 4096;

impl Answer {
    fn text(route: &'static str, status: StatusCode, text: impl Into<Bytes>) -> Self {
        let (content_type, body) = (PLAIN_TEXT.into(), text.into());
        Self { route, status, content_type, body, coding: None, events: None, extra: None }
    }

    fn with(mut self, name: header::HeaderName, value: &'static str) -> Self {
        self.extra = Some((name, HeaderValue::from_static(value)));
        self
    }

    /// The response to a method that the route does not support.
    fn wrong_method(route: &'static str, allowed: &str) -> Self {
        let (but, last) = allowed.rsplit_once(", ").unwrap_or(("", allowed));
        let text = if but.is_empty() {
            format!("only {last} is supported\n")
        } else {
            format!("only {but} and {last} are supported\n")
        };
        let mut answer = Self::text(route, StatusCode::METHOD_NOT_ALLOWED, text);
        answer.extra = HeaderValue::try_from(allowed).ok().map(|allowed| (header::ALLOW, allowed));
        answer
    }
}

impl Answerer {
    /// Responds to one request from `peer`. The body is read only for routes with [`Access::Writer`].
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        watch: &Arc<Watch>,
    ) -> Response<WatchedBody> {
        watch.enter_checking();
        let secured = self.security.now();
        let version = request.version();
        let is_head = request.method() == Method::HEAD;
        let mut answer = {
            let _in_flight = RaisedGauge::new(&self.stats.in_flight);
            self.decide(request, peer, watch, &secured).await
        };
        match self.budget.charge(watch, answer.body.len()) {
            Some(charge) => watch.carry(charge),
            None => {
                count(&self.stats.answers_refused);
                answer = Answer::text(
                    answer.route,
                    StatusCode::SERVICE_UNAVAILABLE,
                    "too many responses in progress; try again\n",
                )
                .with(header::RETRY_AFTER, "5");
            }
        }
        self.stats.answered(answer.route, answer.status.as_u16());
        let mut response = respond(answer, is_head, watch);
        if version == Version::HTTP_2 && response.headers_mut().remove(header::CONNECTION).is_some() {
            watch.end_with_answer();
        }
        for (name, value) in secured.headers.iter() {
            response.headers_mut().insert(name, value.clone());
        }
        response
    }

    async fn decide(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        watch: &Watch,
        secured: &Secured,
    ) -> Answer {
        if self.is_control && !peer.local.is_some_and(may_control) {
            let text = "this socket is for root and the exporter's own user\n";
            return Answer::text("other", StatusCode::FORBIDDEN, text);
        }
        let (request, body) = request.into_parts();
        let path = request.uri.path();
        if let Some(wrong) = wrong_host(&request).or_else(|| ambiguous_credentials(&request)) {
            return Answer::text("other", StatusCode::BAD_REQUEST, wrong);
        }
        let found = self.router.find(&request.method, path, self.is_control || secured.auth.is_some());
        if let Some(rate) = self.exceeded_rate(&request, peer.address, watch, secured) {
            let route = match found {
                RouteMatch::Route(route) => route.path,
                _ => "other",
            };
            let text = "too many requests; try again later\n";
            let mut answer = Answer::text(route, StatusCode::TOO_MANY_REQUESTS, text);
            answer.extra = Some((header::RETRY_AFTER, rate.seconds_per_token().into()));
            return answer;
        }
        match found {
            RouteMatch::Nothing => Answer::text("other", StatusCode::NOT_FOUND, self.router.not_found()),
            RouteMatch::WrongMethod(route, allowed) => Answer::wrong_method(route, &allowed),
            RouteMatch::Index(text) => Answer::text("/", StatusCode::OK, text.to_string()),
            RouteMatch::Route(route) => {
                let began = Instant::now();
                let handled = self.handle(route, &request, body, peer, watch, secured);
                let answer = match timeout(self.limits.handler, handled).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        count(&self.stats.handler_timeouts);
                        Answer::text(
                            route.path,
                            StatusCode::SERVICE_UNAVAILABLE,
                            "the request timed out; try again\n",
                        )
                        .with(header::RETRY_AFTER, "5")
                    }
                };
                // If credentials are configured, an unauthenticated client is a stranger: it is not recorded, even on
                // an open route.
                if secured.auth.is_none() || watch.is_trusted() {
                    record_visit(route, &request, peer.address, secured.auth.is_some(), began, &answer);
                }
                answer
            }
        }
    }

    async fn handle(
        &self,
        route: &Route,
        request: &Parts,
        body: Incoming,
        peer: Peer,
        watch: &Watch,
        secured: &Secured,
    ) -> Answer {
        let auth = &secured.auth;
        let is_of_page = request.headers.contains_key(header::ORIGIN);
        if route.access == Access::Writer && is_of_page {
            let text = "browsers may not request this\n";
            return Answer::text(route.path, StatusCode::FORBIDDEN, text);
        }
        if route.access == Access::Operator
            && (is_of_page
                || (auth.is_none() && !watch.is_trusted() && !peer.address.to_canonical().is_loopback()))
        {
            let text = "this is for the operator: with the metrics' user and password, or without these \
                        from this machine, and not from a browser\n";
            return Answer::text(route.path, StatusCode::FORBIDDEN, text);
        }
        if route.access != Access::Open
            && let Some(credentials) = auth
        {
            let presented = request.headers.get(header::AUTHORIZATION);
            if !credentials.accept(presented, peer.address).await {
                return self.unauthorized(route, peer.address);
            }
            watch.trust();
        }
        // From here on a user name in the request is authentic, if the route requires credentials.
        let user = auth.as_ref().and_then(|_| request.headers.get(header::AUTHORIZATION)).and_then(user_of);
        let caller = match peer.local.filter(|_| self.is_control) {
            Some(local) => Caller::Local(local),
            None => Caller::Remote(user, peer.address),
        };
        if route.access == Access::Writer
            && let Some(answer) = self.refuse_reader(route, request, &caller, secured)
        {
            return answer;
        }
        let body = match route.access {
            Access::Writer => match read_body(body).await {
                Ok(body) => body,
                Err((status, text)) => return Answer::text(route.path, status, text),
            },
            _ => Bytes::new(),
        };
        watch.enter_handling();
        let accept: Vec<_> =
            request.headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        let info = RequestInfo {
            query: request.uri.query().map(str::to_string),
            accept: (!accept.is_empty()).then(|| accept.join(",")),
            below: route.below(request.uri.path()).unwrap_or_default().to_string(),
            caller,
            body,
        };
        let preferred = coding::preferred(&request.headers);
        let handler = route.handler.clone();
        // The semaphore is never closed. The permit moves into the handler, which runs to completion even after the
        // request has timed out.
        let permit = self.handlers.clone().acquire_owned().await;
        let made = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut reply = handler(&info);
            let coding = preferred.filter(|_| coding::worth_it(reply.body.len()));
            if let Some(coding) = coding {
                reply.body = coding.compress(&reply.body);
            }
            (reply, coding)
        });
        match made.await {
            Ok((reply, coding)) => {
                let events = match &reply.stream {
                    None => None,
                    Some(stream) => match stream.listen() {
                        Some(events) => Some(events),
                        None => {
                            count(&self.stats.streams_refused);
                            let text = "too many streams are open; close one, or try again later\n";
                            return Answer::text(route.path, StatusCode::SERVICE_UNAVAILABLE, text)
                                .with(header::RETRY_AFTER, "60");
                        }
                    },
                };
                // The limits of handlers allow several requests a second.
                let is_limited = reply.status == StatusCode::TOO_MANY_REQUESTS;
                Answer {
                    route: route.path,
                    status: reply.status,
                    content_type: route.content_type_of(&reply),
                    body: reply.body,
                    coding,
                    events,
                    extra: is_limited.then(|| (header::RETRY_AFTER, HeaderValue::from_static("1"))),
                }
            }
            Err(error) => {
                let reason = if error.is_panic() { "panicked" } else { "was cancelled" };
                notify(
                    &self.report,
                    Level::Error,
                    format!("internal error: the handler of {} {reason}", route.path),
                );
                Answer::text(route.path, StatusCode::INTERNAL_SERVER_ERROR, "internal error\n")
            }
        }
    }
}

impl Answerer {
    /// Takes one of the client's tokens, if there is a rate limit. Known clients are told apart from strangers before
    /// any password is verified, so that guessing costs only the guesser.
    fn exceeded_rate(&self, request: &Parts, peer: IpAddr, watch: &Watch, secured: &Secured) -> Option<Rate> {
        let rate = secured.rate?;
        let is_known = match &secured.auth {
            Some(credentials) => credentials.knows(request.headers.get(header::AUTHORIZATION)),
            None => watch.is_trusted(),
        };
        (!self.limiter.allows(rate, peer, is_known, Instant::now())).then_some(rate)
    }

    /// The response to users without write access.
    fn refuse_reader(
        &self,
        route: &Route,
        request: &Parts,
        caller: &Caller,
        secured: &Secured,
    ) -> Option<Answer> {
        let Caller::Remote(user, _) = caller else { return None };
        if user.as_ref().is_some_and(|user| secured.writers.contains(user)) {
            return None;
        }
        let text = format!("{} {}: refused: {caller} may only read", request.method, request.uri.path());
        notify(&self.report, Level::Warning, text);
        let text = "this user may only read; the setting web_writers names those who may write\n";
        Some(Answer::text(route.path, StatusCode::FORBIDDEN, text))
    }

    /// The connection is closed afterwards, so that each guess needs a new connection.
    fn unauthorized(&self, route: &Route, peer: IpAddr) -> Answer {
        count(&self.stats.unauthorized);
        notify(&self.report, Level::Debug, format!("{peer}: authentication failed for {}", route.path));
        Answer::text(route.path, StatusCode::UNAUTHORIZED, "authentication required\n")
            .with(header::WWW_AUTHENTICATE, "Basic realm=\"metrics\", charset=\"UTF-8\"")
    }
}

/// Records the visitor, unless the request was refused.
fn record_visit(
    route: &Route,
    request: &Parts,
    peer: IpAddr,
    has_users: bool,
    began: Instant,
    answer: &Answer,
) {
    let Some(visitors) = &route.visitors else { return };
    if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return;
    }
    let header = |name| request.headers.get(name);
    let user = header(header::AUTHORIZATION).filter(|_| has_users).and_then(user_of);
    let agent = header(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    visitors.record(peer, user, agent, began.elapsed(), answer.body.len(), answer.status.as_u16());
}

/// Returns what is wrong with the `Host` header (RFC 9112, section 3.2).
fn wrong_host(request: &Parts) -> Option<&'static str> {
    let is_part = |letter: &u8| letter.is_ascii_graphic() && !b"/\\?#@,<>\"".contains(letter);
    let mut hosts = request.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version == Version::HTTP_11 => Some("missing Host header\n"),
        (_, Some(_)) => Some("more than one Host header\n"),
        (Some(host), None) if !host.as_bytes().iter().all(is_part) => Some("invalid Host header\n"),
        _ => None,
    }
}

/// A proxy that reads another one of several headers than this server would check another user's rights.
fn ambiguous_credentials(request: &Parts) -> Option<&'static str> {
    let several = request.headers.get_all(header::AUTHORIZATION).iter().nth(1).is_some();
    several.then_some("more than one Authorization header\n")
}

/// Reads the request's body. What is announced as too long is not waited for.
///
/// # Errors
///
/// The status and text to respond with.
async fn read_body(body: Incoming) -> Result<Bytes, (StatusCode, String)> {
    let too_long =
        || (StatusCode::PAYLOAD_TOO_LARGE, format!("the request's body has more than {MAX_BODY} bytes\n"));
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_long());
    }
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(err) if err.is::<LengthLimitError>() => Err(too_long()),
        Err(_) => Err((StatusCode::BAD_REQUEST, "the request's body is incomplete\n".to_owned())),
    }
}

/// Whether a process may use the control socket.
fn may_control(peer: LocalPeer) -> bool {
    peer.uid == 0 || peer.uid == rustix::process::geteuid().as_raw()
}

/// Restrictions on a page: it may only load resources from this server and may not be embedded in another page.
static PAGE_HEADERS: [(header::HeaderName, HeaderValue); 3] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
];

fn respond(answer: Answer, is_head: bool, watch: &Arc<Watch>) -> Response<WatchedBody> {
    let length = answer.events.is_none().then_some(answer.body.len());
    let mut response = Response::new(match answer.events {
        // hyper leaves the body out for HTTP/1 only.
        _ if is_head => WatchedBody::whole(Bytes::new(), watch),
        Some(events) => WatchedBody::events(events, watch),
        None => WatchedBody::whole(answer.body, watch),
    });
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    if answer.content_type == HTML {
        headers.extend(PAGE_HEADERS.iter().cloned());
    }
    let content_type = match answer.content_type {
        Cow::Borrowed(text) => HeaderValue::from_static(text),
        // Also generated here, from known parts of the client's request.
        Cow::Owned(text) => HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(PLAIN_TEXT)),
    };
    headers.insert(header::CONTENT_TYPE, content_type);
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::BAD_REQUEST) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if let Some(coding) = answer.coding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    }
    if let Some((name, value)) = answer.extra {
        headers.insert(name, value);
    }
    response
}
