//! What kubectl's words mean.

/// Signs of what passes by itself: an API that comes and goes, etcd without a leader for a moment, a webhook whose pods
/// are about to run, an object that is about to be gone. The last ones are client-go's words for a connection that is cut
/// and for an answer that takes too long.
const SIGNS: [&str; 21] = [
    "connection refused",
    "was refused",
    "failed calling webhook",
    "etcdserver",
    "Internal error",
    "(InternalError)",
    "(ServiceUnavailable)",
    "(TooManyRequests)",
    "(Timeout)",
    "(ServerTimeout)",
    "currently unable",
    "unable to handle the request",
    "i/o timeout",
    "TLS handshake",
    "is being terminated",
    "because it is being",
    "not yet ready",
    "try again later",
    "connection reset",
    "Unable to connect to the server",
    "timed out waiting for the condition",
];

/// Whether it failed for what passes by itself.
pub fn passes(text: &str) -> bool {
    SIGNS.iter().any(|sign| text.contains(sign)) || text.lines().any(|l| l.trim_end().ends_with(": EOF"))
}

/// Whether it failed because a webhook that has to be asked is not there to answer, rather than by what it answered.
pub fn lacks_webhook(text: &str) -> bool {
    const LACKS: [&str; 6] = [
        "connection refused",
        "no endpoints available",
        "deadline exceeded",
        "i/o timeout",
        "no route to host",
        "certificate signed by unknown authority",
    ];
    text.contains("failed calling webhook") && LACKS.iter().any(|sign| text.contains(sign))
}

/// The same as a pattern of the shell's `case`, for what is tried again on a node.
pub fn passing_pattern() -> String {
    let signs = SIGNS.iter().map(|sign| format!("*'{sign}'*"));
    signs.chain(["*': EOF'*".to_owned()]).collect::<Vec<_>>().join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_told_from_what_does_not() {
        // As the API server says it (apiserver, pkg/admission/plugin/webhook/errors).
        let webhook = |why: &str| {
            let url = "https://cert-manager-webhook.cert-manager.svc:443/mutate?timeout=30s";
            let called = format!(
                "failed calling webhook \"webhook.cert-manager.io\": failed to call webhook: Post \"{url}\": {why}"
            );
            lacks_webhook(&format!(
                "Error from server (InternalError): error when creating \"STDIN\": Internal error occurred: {called}"
            ))
        };
        assert!(webhook("dial tcp 10.43.7.1:443: connect: connection refused"));
        assert!(webhook("no endpoints available for service \"cert-manager-webhook\""));
        assert!(
            webhook("x509: certificate signed by unknown authority")
                && !webhook("unexpected response code: 404")
        );
        assert!(!lacks_webhook(
            "Error from server: admission webhook \"x\" denied the request: connection refused"
        ));
        for text in [
            "Error from server: etcdserver: leader changed",
            "Unable to connect to the server: EOF",
            "The connection to the server 127.0.0.1:6443 was refused - did you specify the right host or port?",
            "Error from server (ServiceUnavailable): the server is currently unable to handle the request",
            "Unable to connect to the server: net/http: TLS handshake timeout",
            "error: read tcp 127.0.0.1:6443: read: connection reset by peer",
            "Error from server (TooManyRequests): the server has received too many requests",
            "error: Get \"https://127.0.0.1:6443/api\": EOF\n",
        ] {
            assert!(passes(text), "{text}");
        }
        for text in [
            "Error from server (Forbidden): nodes \"server-1\" is forbidden",
            "Error from server (NotFound): namespaces \"nowhere\" not found",
            "error: unable to drain node \"worker\" due to error: timeout reached",
        ] {
            assert!(!passes(text), "{text}");
        }
    }
}
