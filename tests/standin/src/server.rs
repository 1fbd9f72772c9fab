//! `k3s server`: datastore, CAs, tokens, kubeconfig and the API, then the node the server itself is.

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, crypto::ring};
use serde_json::{Value, json};

use crate::api::Api;
use crate::certs::{self, Authority, Pair};
use crate::config::{Config, Role};
use crate::etcd::{self, Etcd};
use crate::http::{self, Request};
use crate::store::{self, Store, StoreState};
use crate::{agent, controllers, faults, ingress, kubeconfig, kubelet, log, notify, paths, tools, util};

/// Starts as root of its own key space, so that the API cannot list it.
const BOOTSTRAP_KEY: &str = "standin/bootstrap/-/token";

pub fn main(arguments: &[String]) -> ExitCode {
    let mut terminated = until_terminated();
    let config = Config::load(Role::Server, arguments);
    log::info(format!("Starting k3s {}", tools::version_line()));
    faults::at_start();
    refuse_what_is_missing(&config);
    if config.is_on("cluster-reset") {
        etcd::reset(&config);
    }

    let node_ips = kubelet::node_ips(&config);
    let data = config.data_dir().join("server");
    let (file, is_etcd) = etcd::settle(&config);
    let had_data = file.exists();
    let store = Store::open(file).unwrap_or_else(|e| log::fatal(e));
    let store = Arc::new(store);
    let password = password(&config, &data, had_data);
    check_bootstrap(&store, &password, &data.join("tls"));

    let mut api = build(&config, &data, &store, password, &node_ips)
        .unwrap_or_else(|e| log::fatal(format!("Error: preparing server: {e}")));
    keep_bootstrap(&store, &data.join("tls"));
    let join_password = api.agent_password.clone().unwrap_or_else(|| api.server_password.clone());
    let etcd = is_etcd.then(|| Etcd::start(&config, &store, &api.server_password, &api.server_ca.pem));
    api.etcd.clone_from(&etcd);

    let address = config.get("bind-address").unwrap_or_else(|| "0.0.0.0".into());
    let port = config.port();
    if faults::is_set("api-dead") {
        log::warn("stand-in fault api-dead: not listening");
    } else {
        // Logged like this when another process has the port.
        let listener = listen(&address, port).unwrap_or_else(|e| {
            let why = if e.kind() == std::io::ErrorKind::AddrInUse {
                "bind: address already in use".into()
            } else {
                e.to_string()
            };
            log::fatal(format!(
                "Error: preparing server: init cluster datastore and https: listen tcp :{port}: {why}"
            ))
        });
        let tls = tls(&config, &data, &api, &node_ips)
            .unwrap_or_else(|e| log::fatal(format!("Error: preparing server: {e}")));
        let api = Arc::new(api);
        let handler: Arc<http::Handler> = Arc::new(move |request: &Request| api.handle(request));
        std::thread::spawn(move || http::serve(&listener, &tls, &handler));
    }
    log::info(format!("Running kube-apiserver (stand-in) on {address}:{port}"));
    if let Some(etcd) = &etcd {
        etcd.watch();
        etcd.wait();
    }
    if etcd.as_ref().is_none_or(|e| e.leads()) {
        controllers::seed(&store, &config);
    }
    controllers::start(store.clone(), etcd);
    ingress::serve(&store, &config);
    log::info("Kube API server is now running");
    log::info("k3s is up and running");
    notify::ready();

    if !config.is_on("disable-agent") {
        let to = match address.as_str() {
            "0.0.0.0" => "127.0.0.1".to_owned(),
            other => other.to_owned(),
        };
        let url = format!("https://{to}:{port}");
        std::thread::spawn(move || {
            let joined = agent::join(&config, &[url], &join_password);
            kubelet::run(&config, &joined);
        });
    }
    terminated.wait();
    log::info("Shutdown request received");
    store.save();
    ExitCode::SUCCESS
}

/// Waits for SIGTERM or SIGINT without a thread that polls.
pub struct Terminated(UnixStream);

impl Terminated {
    pub fn wait(&mut self) {
        let _ = std::io::Read::read(&mut self.0, &mut [0]);
    }
}

pub fn until_terminated() -> Terminated {
    let (ours, theirs) = UnixStream::pair().unwrap_or_else(|e| log::fatal(format!("socketpair: {e}")));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        let registered = theirs.try_clone().and_then(|s| signal_hook::low_level::pipe::register(signal, s));
        if let Err(e) = registered {
            log::fatal(format!("signal handler: {e}"));
        }
    }
    Terminated(ours)
}

/// What the real program can do and this one would have to pretend.
/// As k3s: where nothing is said, at all addresses, those of IPv6 too.
fn listen(address: &str, port: u16) -> std::io::Result<TcpListener> {
    match address {
        "0.0.0.0" => TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind((address, port))),
        address => TcpListener::bind((address, port)),
    }
}

fn refuse_what_is_missing(config: &Config) {
    if config.get("datastore-endpoint").is_some() {
        log::fatal("the k3s stand-in does not support --datastore-endpoint");
    }
}

/// The server token's secret: given, or kept from last time, or made now. The long form is accepted
/// only by a server that already has the CA whose hash is in it.
fn password(config: &Config, data: &Path, had_data: bool) -> String {
    let kept = util::read(data.join("token")).map(|t| secret_of(&t));
    match config.token() {
        Some(token) if token.starts_with("K10") && !had_data => {
            log::fatal("failed to normalize server token; must be in format <PASSWORD> on the first server")
        }
        Some(token) => secret_of(&token),
        None => kept.unwrap_or_else(|| util::random_hex(16)),
    }
}

/// `K10<hash>::<user>:<password>` or `<password>` → the password.
pub fn secret_of(token: &str) -> String {
    match token.split_once("::") {
        Some((_, credentials)) => credentials.split_once(':').map_or(credentials, |(_, p)| p).to_owned(),
        None => token.to_owned(),
    }
}

/// k3s encrypts its bootstrap data with the server token, so another token cannot open the
/// datastore. Here a digest of the token stands for the encryption. The authorities' files are in there,
/// for a machine that has the data and not the files.
pub fn check_bootstrap(store: &Store, password: &str, tls: &Path) {
    let digest = util::sha256(format!("bootstrap {password}").as_bytes());
    let known = store.lock().objects.get(BOOTSTRAP_KEY).map(|b| b["digest"] == digest.as_str());
    match known {
        Some(true) => {
            let files = store.lock().objects.get(BOOTSTRAP_KEY).map(|b| b["files"].clone());
            for name in etcd::BOOTSTRAP {
                let text = files.as_ref().and_then(|f| f[name].as_str()).unwrap_or_default();
                if !text.is_empty() && !tls.join(name).exists() {
                    log::info(format!("Writing {name} from the datastore"));
                    if let Err(e) = util::write_atomically(&tls.join(name), text.as_bytes(), 0o600) {
                        log::fatal(format!("Error: preparing server: {name}: {e}"));
                    }
                }
            }
        }
        Some(false) => log::fatal(
            "Error: preparing server: failed to bootstrap cluster data: failed to reconcile with local \
             datastore: bootstrap data already found and encrypted with different token",
        ),
        None => store.update(|state| {
            state.put(BOOTSTRAP_KEY, json!({"digest": digest, "metadata": {}}));
        }),
    }
}

/// The authorities go into the datastore, once.
fn keep_bootstrap(store: &Store, tls: &Path) {
    store.update(|state| {
        let mut object = state.objects.get(BOOTSTRAP_KEY).cloned().unwrap_or_default();
        if object["files"].is_null() {
            object["files"] = etcd::bootstrap(tls);
            state.put(BOOTSTRAP_KEY, object);
        }
    });
}

fn build(
    config: &Config,
    data: &Path,
    store: &Arc<Store>,
    password: String,
    node_ips: &[String],
) -> Result<Api, certs::Error> {
    let tls = data.join("tls");
    let server_ca = Authority::open(&tls, "server-ca")?;
    let client_ca = Authority::open(&tls, "client-ca")?;
    let hash = util::sha256(server_ca.pem.as_bytes());
    let agent_password = config.agent_token().map(|t| secret_of(&t)).filter(|t| *t != password);

    util::write_atomically(&data.join("token"), format!("K10{hash}::server:{password}\n").as_bytes(), 0o600)?;
    link(data, "node-token", "token")?;
    match &agent_password {
        Some(agent) => {
            let _ = std::fs::remove_file(data.join("agent-token"));
            util::write_atomically(
                &data.join("agent-token"),
                format!("K10{hash}::node:{agent}\n").as_bytes(),
                0o600,
            )?;
        }
        None => link(data, "agent-token", "token")?,
    }
    std::fs::create_dir_all(data.join("manifests"))?;

    let admin = Pair::kept(&tls, "client-admin", || client_ca.client("system:admin", "system:masters"))?;
    let (path, mode) = config.kubeconfig();
    let bound = config.get("bind-address").filter(|a| a != "0.0.0.0").unwrap_or_else(|| "127.0.0.1".into());
    kubeconfig::write(&path, mode, &format!("{bound}:{}", config.port()), &server_ca.pem, &admin)?;
    log::info(format!("Wrote kubeconfig {}", path.display()));
    let advertised = node_ips.first().map_or("127.0.0.1", String::as_str);
    log::info(format!(
        "To join agent to cluster: k3s agent -s https://{advertised}:{} -t ${{AGENT_NODE_TOKEN}}",
        config.port()
    ));

    let version = faults::get("wrong-version").unwrap_or_else(paths::version);
    Ok(Api {
        store: store.clone(),
        server_ca,
        client_ca,
        server_password: password,
        agent_password,
        version,
        cluster: etcd::with_critical(cluster(config), config),
        etcd: None,
        tls,
        url: format!("https://{advertised}:{}", config.port()),
    })
}

/// What agents inherit from the server.
fn cluster(config: &Config) -> Value {
    let or = |key: &str, default: &str| config.get(key).unwrap_or_else(|| default.to_owned());
    json!({
        "ClusterIPRange": or("cluster-cidr", "10.42.0.0/16"),
        "ServiceIPRange": or("service-cidr", "10.43.0.0/16"),
        "ClusterDNS": or("cluster-dns", "10.43.0.10"),
        "ClusterDomain": or("cluster-domain", "cluster.local"),
        "FlannelBackend": or("flannel-backend", "vxlan"),
        "HTTPSPort": config.port(), "SupervisorPort": config.port(), "StandInIngress": ingress::is_on(config),
    })
}

fn link(data: &Path, name: &str, to: &str) -> std::io::Result<()> {
    let path = data.join(name);
    if std::fs::read_link(&path).is_ok_and(|t| t == data.join(to)) {
        return Ok(());
    }
    let _ = std::fs::remove_file(&path);
    std::os::unix::fs::symlink(data.join(to), path)
}

fn tls(
    config: &Config,
    data: &Path,
    api: &Api,
    node_ips: &[String],
) -> Result<Arc<ServerConfig>, certs::Error> {
    let mut names: Vec<String> =
        ["localhost", "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            .map(str::to_owned)
            .to_vec();
    let domain = config.get("cluster-domain").unwrap_or_else(|| "cluster.local".into());
    names.push(format!("kubernetes.default.svc.{domain}"));
    let services = config.get("service-cidr").unwrap_or_else(|| "10.43.0.0/16".into());
    names.extend(
        services.split('/').next().and_then(|base| base.strip_suffix(".0")).map(|net| format!("{net}.1")),
    );
    names.push(config.node_name());
    names.extend(node_ips.iter().cloned());
    for key in ["node-external-ip", "advertise-address", "tls-san"] {
        names.extend(config.list(key));
    }
    names.sort();
    names.dedup();
    let serving = api.server_ca.serving("k3s", &names)?;
    serving.write(&data.join("tls"), "serving-kube-apiserver")?;
    let provider = Arc::new(ring::default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(certs::roots(&api.client_ca.pem)?, provider.clone())
            .allow_unauthenticated()
            .build()?;
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(serving.chain()?, serving.private_key()?)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

/// Creates an object unless it is there; used for what every cluster has from the start.
pub fn ensure(state: &mut StoreState, prefix: &str, resource: &str, mut object: Value) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
    let key = store::key(prefix, resource, namespace.as_deref(), &name);
    if !state.objects.contains_key(&key) {
        StoreState::stamp(&mut object);
        state.put(&key, object);
    }
}
