//! Tests with the answers of each metadata service.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use parking_lot::Mutex;
use tokio::net::TcpListener;

use super::*;

/// The answers of a service: the beginning of a request's method and path, the status, and the
/// text. The first match is used.
type Answers = Vec<(&'static str, u16, String)>;

/// A metadata service that gives prepared answers.
struct Fake {
    url: String,
    answers: Arc<Mutex<Answers>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    async fn start(answers: &[(&'static str, u16, &str)]) -> Self {
        type Shared = (Arc<Mutex<Answers>>, Arc<Mutex<Vec<String>>>);
        async fn answer(
            State((answers, asked)): State<Shared>,
            request: Request,
        ) -> (StatusCode, String) {
            let path = request.uri().path_and_query().map_or("", |path| path.as_str());
            let line = format!("{} {path}", request.method());
            asked.lock().push(format!("{line} {:?}", request.headers()));
            let answers = answers.lock();
            let found = answers.iter().find(|(begin, ..)| line.starts_with(begin));
            let (status, text) = found.map_or((404, ""), |(_, status, text)| (*status, text));
            (StatusCode::from_u16(status).unwrap(), text.to_owned())
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let fake = Self { url, answers: Arc::default(), asked: Arc::default() };
        fake.says(answers);
        let shared = (fake.answers.clone(), fake.asked.clone());
        let router = Router::new().fallback(answer).with_state(shared);
        tokio::spawn(async move { axum::serve(listener, router).await });
        fake
    }

    fn says(&self, answers: &[(&'static str, u16, &str)]) {
        let owned =
            |(line, status, text): &(&'static str, u16, &str)| (*line, *status, (*text).to_owned());
        *self.answers.lock() = answers.iter().map(owned).collect();
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock())
    }
}

const TOKEN: (&str, u16, &str) = ("PUT /latest/api/token", 200, "abc==");
const ACTION: &str = "GET /latest/meta-data/spot/instance-action";
const LIFE: &str = "GET /latest/meta-data/instance-life-cycle";
const PREEMPTED: &str = "GET /computeMetadata/v1/instance/preempted";
const NAME: (&str, u16, &str) = ("GET /metadata/instance/compute/name", 200, "set_7\n");
const EVENTS: &str = "GET /metadata/scheduledevents";

fn aws(fake: &Fake) -> aws::Metadata {
    let variables = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", &*fake.url)];
    aws::Metadata::of(&variables.into_iter().collect())
}

fn google(fake: &Fake) -> google::Metadata {
    let host = fake.url.trim_start_matches("http://");
    google::Metadata::of(&[("GCE_METADATA_HOST", host)].into_iter().collect())
}

fn azure(fake: &Fake) -> azure::Metadata {
    let variables = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", &*fake.url)];
    azure::Metadata::of(&variables.into_iter().collect())
}

/// The result of a look, as text.
async fn seen(service: &mut dyn Service) -> String {
    match service.look().await {
        Ok(Seen::Nothing) => "nothing".to_owned(),
        Ok(Seen::Never(reason)) => format!("never: {reason}"),
        Ok(Seen::Notice(Notice { text, left })) => format!("{text}: {} s", left.as_secs()),
        Err(problem) => format!("problem: {problem}"),
    }
}

#[tokio::test]
async fn a_spot_machine_of_ec2_is_told_when_it_ends() {
    let fake = Fake::start(&[TOKEN, (LIFE, 200, "spot")]).await;
    let mut service = aws(&fake);
    assert_eq!(seen(&mut service).await, "nothing");
    let asked = fake.asked();
    assert_eq!(asked.len(), 3, "{asked:#?}");
    assert!(asked[0].contains(r#""x-aws-ec2-metadata-token-ttl-seconds": "21600""#), "{asked:#?}");
    assert!(asked[2].contains(r#""x-aws-ec2-metadata-token": "abc==""#), "{asked:#?}");
    // The token is kept.
    assert_eq!(seen(&mut service).await, "nothing");
    assert_eq!(fake.asked().len(), 1);
    let notice = |action| format!(r#"{{"action": "{action}", "time": "2017-09-18T08:22:00Z"}}"#);
    fake.says(&[TOKEN, (ACTION, 200, &notice("terminate"))]);
    let want = "EC2 will terminate this machine at 2017-09-18T08:22:00Z: 0 s";
    assert_eq!(seen(&mut service).await, want);
    // With a slow clock, the time until the end is still limited to two minutes.
    let far = r#"{"action": "stop", "time": "2099-09-18T08:22:00Z"}"#;
    fake.says(&[TOKEN, (ACTION, 200, far)]);
    let want = "EC2 will stop this machine at 2099-09-18T08:22:00Z: 120 s";
    assert_eq!(seen(&mut service).await, want);
    fake.says(&[TOKEN, (ACTION, 200, r#"{"action": "hibernate"}"#)]);
    assert_eq!(seen(&mut service).await, "EC2 will hibernate this machine: 0 s");
}

#[tokio::test]
async fn a_token_that_ec2_refuses_is_replaced() {
    let fake = Fake::start(&[TOKEN]).await;
    let mut service = aws(&fake);
    assert_eq!(seen(&mut service).await, "nothing");
    fake.says(&[TOKEN, (ACTION, 401, "")]);
    let want = "problem: answers a question for a notice with status 401";
    assert_eq!(seen(&mut service).await, want);
    fake.asked();
    fake.says(&[TOKEN]);
    assert_eq!(seen(&mut service).await, "nothing");
    assert!(fake.asked()[0].starts_with("PUT /latest/api/token"));
}

#[tokio::test]
async fn a_machine_of_ec2_that_is_not_of_the_spot_market_is_not_watched() {
    let fake = Fake::start(&[TOKEN, (LIFE, 200, "on-demand")]).await;
    assert_eq!(seen(&mut aws(&fake)).await, "never: this is not a spot machine");
}

#[tokio::test]
async fn a_machine_of_google_is_told_by_a_value_that_changes() {
    let fake = Fake::start(&[(PREEMPTED, 200, "FALSE\n")]).await;
    let mut service = google(&fake);
    assert_eq!(seen(&mut service).await, "nothing");
    let asked = fake.asked();
    assert!(asked[0].contains(r#""metadata-flavor": "Google""#), "{asked:#?}");
    fake.says(&[(PREEMPTED, 200, "TRUE\n")]);
    assert_eq!(seen(&mut service).await, "Google will stop this machine within 30 s: 30 s");
}

#[tokio::test]
async fn events_of_other_machines_and_pauses_are_no_notice_of_azures() {
    let fake = Fake::start(&[NAME, (EVENTS, 200, r#"{"DocumentIncarnation": 1, "Events": []}"#)]);
    let fake = fake.await;
    let mut service = azure(&fake);
    assert_eq!(seen(&mut service).await, "nothing");
    let asked = fake.asked();
    assert!(asked.iter().all(|asked| asked.contains(r#""metadata": "true""#)), "{asked:#?}");
    let check = async |events: &str, want: &str| {
        let text = format!(r#"{{"DocumentIncarnation": 2, "Events": [{events}]}}"#);
        fake.says(&[NAME, (EVENTS, 200, &text)]);
        assert_eq!(seen(&mut azure(&fake)).await, want, "{events}");
    };
    let event = |kind: &str, machine: &str, at: &str| {
        format!(
            r#"{{"EventId": "1", "EventType": "{kind}", "ResourceType": "VirtualMachine",
                "Resources": ["set_1", "{machine}"], "EventStatus": "Scheduled",
                "NotBefore": "{at}"}}"#
        )
    };
    let past = "Mon, 19 Sep 2016 18:29:47 GMT";
    check(&event("Preempt", "set_8", past), "nothing").await;
    check(&event("Freeze", "set_7", past), "nothing").await;
    let want = format!("Azure will take away this machine at {past}: 0 s");
    check(&event("Preempt", "SET_7", past), &want).await;
    check(&event("Terminate", "set_7", ""), "Azure will delete this machine: 30 s").await;
    // The earliest event counts.
    let both = [event("Reboot", "set_7", ""), event("Preempt", "set_7", past)].join(", ");
    check(&both, &want).await;
}

#[tokio::test]
async fn what_is_not_understood_is_no_notice() {
    let long = "x".repeat(1 << 20);
    let html = "<html>".repeat(100);
    for (status, text) in [(500, "TRUE"), (200, &*long), (200, &*html), (200, ""), (403, "{}")] {
        let says = [(ACTION, status, text), (PREEMPTED, status, text), (EVENTS, status, text)];
        let fake = Fake::start(&[&[TOKEN, NAME], &says[..]].concat()).await;
        let (mut aws, mut google, mut azure) = (aws(&fake), google(&fake), azure(&fake));
        let services: [&mut dyn Service; 3] = [&mut aws, &mut google, &mut azure];
        for service in services {
            let name = service.to_string();
            let seen = seen(service).await;
            assert!(seen.starts_with("problem: ") && seen.len() < 300, "{name}: {seen}");
        }
    }
    let fake = Fake::start(&[("PUT /latest/api/token", 200, "two\nlines")]).await;
    let want = "problem: answers a request for a token with \"two\\nlines\", which is not \
                valid";
    assert_eq!(seen(&mut aws(&fake)).await, want);
    let fake = Fake::start(&[]).await;
    for service in [&mut aws(&fake) as &mut dyn Service, &mut google(&fake), &mut azure(&fake)] {
        assert!(seen(service).await.ends_with("with status 404"));
    }
}

#[test]
fn only_a_machine_of_a_cloud_that_can_tell_is_watched() {
    let check = |notices, variables: &[(&str, &str)], engine, cloud, want: Option<&str>| {
        let environment: Environment = variables.iter().copied().collect();
        let machine = Machine::of_cloud(cloud);
        let found = Watcher::find(notices, &environment, engine, &machine);
        let found = found.map(|watcher| watcher.to_string());
        assert_eq!(found.as_deref(), want, "{notices:?} {variables:?} {engine:?} {cloud:?}");
    };
    let (aws, google) = (Some(Cloud::Aws), Some(Cloud::Google));
    let aws_says = Some("the metadata service of EC2 at http://169.254.169.254");
    let google_says = Some("the metadata server of Google at http://169.254.169.254");
    let azure_says = Some("the metadata service of Azure at http://169.254.169.254");
    let fake = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1338/");
    let fargate = ("AWS_EXECUTION_ENV", "AWS_ECS_FARGATE");
    let disabled = ("AWS_EC2_METADATA_DISABLED", "true");
    check(Notices::Auto, &[fake], None, None, None);
    check(Notices::Auto, &[], None, aws, aws_says);
    check(Notices::Auto, &[], Some(Engine::Batch), aws, aws_says);
    check(Notices::Auto, &[], Some(Engine::K8s), aws, None);
    check(Notices::Auto, &[fargate], Some(Engine::Ecs), aws, None);
    check(Notices::Auto, &[disabled], None, aws, None);
    check(Notices::Auto, &[disabled], None, google, google_says);
    check(Notices::Off, &[], None, aws, None);
    check(Notices::Of(Cloud::Azure), &[], Some(Engine::K8s), None, azure_says);
    let there = Some("the metadata service of EC2 at http://127.0.0.1:1338");
    check(Notices::Of(Cloud::Aws), &[fake], None, None, there);
    let ipv6 = ("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6");
    let there = Some("the metadata service of EC2 at http://[fd00:ec2::254]");
    check(Notices::Auto, &[ipv6], None, aws, there);
    let named = ("GCE_METADATA_HOST", "localhost:8080");
    let there = Some("the metadata server of Google at http://localhost:8080");
    check(Notices::Auto, &[named], None, google, there);
}

#[test]
fn tasks_may_run_until_shortly_before_the_machine_goes() {
    let second = Duration::from_secs(1);
    let grace = |left: u32| Notice { text: String::new(), left: second * left }.grace();
    assert_eq!(grace(120), second * 105);
    assert_eq!(grace(30), second * 15);
    assert_eq!(grace(0), second * 3);
    let at = |time| Notice::at(String::new(), time, second * 120).left;
    let now = SystemTime::now();
    assert_eq!(at(None), second * 30);
    assert_eq!(at(Some(now - second)), Duration::ZERO);
    assert_eq!(at(Some(now + second * 900)), second * 120);
    let left = at(Some(now + second * 60));
    assert!(left <= second * 60 && left > second * 30, "{left:?}");
}
