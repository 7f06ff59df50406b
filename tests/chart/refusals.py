"""Values that must be refused, and what has to be said to them."""

import copy

SECRETS = {"redis": {"existingSecret": "redis"}, "database": {"existingSecret": "database"}}
KEDA = {"enabled": True, "serverAddress": "http://prometheus:9090"}

# What is wrong, the values, and words that helm must say.
REFUSED = [
    ("no Secret for Redis", {"redis": {"existingSecret": ""}}, ["redis.existingSecret", "name a Secret"]),
    ("no Secret for Postgres", {"database": {"existingSecret": ""}}, ["database.existingSecret", "name a Secret"]),
    ("a Secret for Redis that one program lacks",
     {"redis": {"existingSecret": ""}, "ingest": {"redis": {"existingSecret": "a"}}, "consumer": {"redis": {"existingSecret": "a"}}},
     ["redis.existingSecret"]),
    ("a Secret for Postgres that migrations lack",
     {"database": {"existingSecret": ""}, "consumer": {"database": {"existingSecret": "a"}}, "toolbox": {"database": {"existingSecret": "a"}}},
     ["database.existingSecret"]),
    ("a URL in values", {"redis": {"url": "redis://redis:6379"}}, ["redis", "url is not allowed"]),
    ("a Secret's name that none can have", {"redis": {"existingSecret": "Not A Name"}}, ["redis.existingSecret", "match pattern"]),
    ("an unknown value", {"ingress": {"enabled": True}}, ["ingress is not allowed"]),
    ("an unknown value further in", {"consumer": {"keda": {"replicas": 3}}}, ["consumer.keda", "replicas is not allowed"]),
    ("an unknown setting", {"ingest": {"settings": {"INGEST_USER_RATES": "1/s"}}}, ["ingest.settings", "INGEST_USER_RATES is not allowed"]),
    ("a setting that has a value of its own", {"ingest": {"settings": {"DRAIN_TIMEOUT": "1m"}}}, ["ingest.settings", "DRAIN_TIMEOUT is not allowed"]),
    ("a setting of another program", {"ingest": {"settings": {"WRITE_TIMEOUT": "1m"}}}, ["ingest.settings", "WRITE_TIMEOUT is not allowed"]),
    ("a URL among settings", {"consumer": {"settings": {"DATABASE_URL": "postgres://u:p@db/likes"}}},
     ["consumer.settings", "DATABASE_URL is not allowed"]),
    ("a bad duration", {"consumer": {"batchLinger": "10 msec"}}, ["consumer.batchLinger", "match pattern"]),
    ("a duration without a unit", {"ingest": {"drainTimeout": 20}}, ["ingest.drainTimeout", "Expected: string"]),
    ("no time at all", {"ingest": {"drainTimeout": "0s"}}, ["ingest.drainTimeout", "match pattern"]),
    ("a bad rate", {"ingest": {"userRate": "many"}}, ["ingest.userRate", "match pattern"]),
    ("two autoscalers", {"consumer": {"hpa": {"enabled": True}, "keda": KEDA}}, ["consumer.hpa.enabled and consumer.keda.enabled", "enable one"]),
    ("more consumers by KEDA than partitions", {"consumer": {"keda": {**KEDA, "maxReplicas": 17}}}, ["consumer.keda.maxReplicas: 17", "likes.partitions, 16"]),
    ("more consumers by HPA than partitions", {"consumer": {"hpa": {"enabled": True, "maxReplicas": 17}}},
     ["consumer.hpa.maxReplicas: 17", "likes.partitions, 16"]),
    ("scaling to nothing", {"consumer": {"keda": {**KEDA, "minReplicas": 0}}}, ["consumer.keda.minReplicas", "greater than or equal to 1"]),
    ("no replicas", {"consumer": {"replicas": 0}}, ["consumer.replicas", "greater than or equal to 1"]),
    ("a minimum over the maximum", {"ingest": {"hpa": {"enabled": True, "minReplicas": 11}}}, ["ingest.hpa.minReplicas: 11", "maxReplicas, 10"]),
    ("a fallback beyond the limits", {"consumer": {"keda": {**KEDA, "fallbackReplicas": 9}}}, ["consumer.keda.fallbackReplicas: 9"]),
    ("no fallback at all", {"consumer": {"keda": {**KEDA, "fallbackReplicas": 0}}}, ["consumer.keda.fallbackReplicas", "greater than or equal to 1"]),
    ("KEDA without Prometheus", {"consumer": {"keda": {"enabled": True}}}, ["consumer.keda.serverAddress"]),
    ("static ownership by KEDA", {"consumer": {"ownership": "static", "keda": KEDA}}, ["consumer.ownership", "use dynamic"]),
    ("static ownership by HPA", {"consumer": {"ownership": "static", "hpa": {"enabled": True}}}, ["consumer.ownership", "use dynamic"]),
    ("static consumers without a partition", {"consumer": {"ownership": "static", "replicas": 17}}, ["consumer.replicas: 17", "likes.partitions, 16"]),
    ("another ownership", {"consumer": {"ownership": "manual"}}, ["consumer.ownership", "must be one of"]),
    ("an end before draining's", {"ingest": {"terminationGracePeriodSeconds": 25}}, ["ingest.terminationGracePeriodSeconds", "25 s of draining"]),
    ("the same of a consumer", {"consumer": {"drainTimeout": "1m 30s", "terminationGracePeriodSeconds": 90}},
     ["consumer.terminationGracePeriodSeconds", "90 s of draining"]),
    ("api-key without keys", {"ingest": {"auth": {"ways": ["api-key"]}}}, ["apiKeys.existingSecret", "both or neither"]),
    ("keys without api-key", {"ingest": {"auth": {"apiKeys": {"existingSecret": "a"}}}}, ["apiKeys.existingSecret", "both or neither"]),
    ("jwt without a key", {"ingest": {"auth": {"ways": ["jwt"]}}}, ["ingest.auth", "jwt.jwks or jwt.verifier.existingSecret"]),
    ("a key without jwt", {"ingest": {"auth": {"jwt": {"verifier": {"existingSecret": "a"}}}}}, ["ingest.auth", "jwt.verifier.existingSecret"]),
    ("two sources of keys",
     {"ingest": {"auth": {"ways": ["jwt"], "jwt": {"issuer": "i", "audience": "a", "jwks": "https://id", "verifier": {"existingSecret": "a"}}}}},
     ["ingest.auth.jwt", "set one"]),
    ("jwt without an issuer", {"ingest": {"auth": {"ways": ["jwt"], "jwt": {"audience": "a", "jwks": "https://id"}}}}, ["issuer and audience"]),
    ("jwks over http", {"ingest": {"auth": {"ways": ["jwt"], "jwt": {"jwks": "http://id"}}}}, ["ingest.auth.jwt.jwks", "match pattern"]),
    ("an authority for no jwks", {"ingest": {"auth": {"jwt": {"jwksCa": {"existingSecret": "a"}}}}}, ["jwksCa.existingSecret", "isn't set"]),
    ("another way in", {"ingest": {"auth": {"ways": ["off"]}}}, ["ingest.auth.ways", "must be one of"]),
    ("a certificate without its key", {"redis": {"tls": {"existingSecret": "a", "cert": "tls.crt"}}}, ["redis.tls", "both or neither"]),
    ("the same of the collector", {"otel": {"tls": {"existingSecret": "a", "key": "tls.key"}}}, ["otel.tls", "both or neither"]),
    ("a Secret of which nothing is used", {"redis": {"tls": {"existingSecret": "a", "ca": ""}}}, ["redis.tls.existingSecret", "nothing of it"]),
    ("credentials in a URL", {"otel": {"endpoint": "https://user:password@collector"}}, ["otel.endpoint", "match pattern"]),
    ("traces for a collector of their own alone", {"ingest": {"settings": {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}}},
     ["ingest.settings.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "set otel.endpoint"]),
    ("metrics for a collector of their own alone", {"consumer": {"settings": {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4318/v1/metrics"}}},
     ["consumer.settings.OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "set otel.endpoint"]),
    ("an Ingress for no host", {"ingest": {"ingress": {"enabled": True}}}, ["ingest.ingress.hosts"]),
    ("a route of no Gateway", {"ingest": {"httpRoute": {"enabled": True}}}, ["ingest.httpRoute.parentRefs"]),
    ("alerts without a runbook", {"monitoring": {"rules": {"enabled": True}}}, ["monitoring.runbookUrl", "docs/runbook.md"]),
    ("dashboards without a runbook", {"monitoring": {"dashboards": {"enabled": True}}}, ["monitoring.runbookUrl", "docs/runbook.md"]),
    ("a node's port inside of the cluster", {"ingest": {"service": {"nodePort": 30000}}}, ["ingest.service.nodePort", "ClusterIP"]),
    ("a port that there isn't", {"ingest": {"service": {"port": 65536}}}, ["ingest.service.port", "less than or equal to 65535"]),
    ("too many partitions", {"likes": {"partitions": 1025}}, ["likes.partitions", "less than or equal to 1024"]),
    ("a label by which pods are selected", {"consumer": {"podLabels": {"app.kubernetes.io/component": "x"}}}, ["consumer.podLabels"]),
    ("a resource in the wrong place", {"ingest": {"resources": {"memory": "1Gi"}}}, ["ingest.resources", "memory is not allowed"]),
    ("a peer that is none", {"networkPolicy": {"callers": [{"cidr": "10.0.0.0/8"}]}}, ["networkPolicy.callers", "cidr is not allowed"]),
    *((f"{path} behind a policy that lets nobody read", {"networkPolicy": {"enabled": True}, **values}, ["networkPolicy.monitoring", path])
      for path, values in (
          ("monitoring.serviceMonitor", {"monitoring": {"serviceMonitor": {"enabled": True}}}),
          ("monitoring.podMonitor", {"monitoring": {"podMonitor": {"enabled": True}}}),
          ("consumer.keda", {"consumer": {"keda": KEDA}}))),
    *((f"an interval of {interval}", {"monitoring": {monitor: {"interval": interval}}}, [f"monitoring.{monitor}.interval", "match pattern"])
      for monitor in ("serviceMonitor", "podMonitor") for interval in ("1m 30s", "30s1m", "0s", "30")),
    ("root", {"security": {"runAsUser": 0}}, ["security.runAsUser", "greater than or equal to 1"]),
    ("a budget that lets nobody drain a node", {"consumer": {"pdb": {"maxUnavailable": 0}}}, ["consumer.pdb.maxUnavailable"]),
    ("a digest that is none", {"image": {"digest": "sha256:abc"}}, ["image.digest", "match pattern"]),
]


def merged(base, over):
    result = copy.deepcopy(base)
    for name, value in over.items():
        result[name] = merged(result.get(name, {}), value) if isinstance(value, dict) else value
    return result


def problems(refusal):
    if said := refusal(SECRETS):
        yield f"values that are good are refused: {said}"
    for what, values, words in REFUSED:
        said = refusal(merged(SECRETS, values))
        if said is None:
            yield f"{what}: it is not refused"
        elif missing := [word for word in words if word not in said]:
            yield f"{what}: {missing} is not in what is said: {said}"
