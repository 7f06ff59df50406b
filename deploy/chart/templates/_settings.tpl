{{/*
These templates return the settings of the programs as YAML maps of environment variables. Numbers pass through int64, because Helm
parses them as floats and would render 1000000 as 1e+06.
*/}}

{{- define "likestream.settings.redis" -}}
REDIS_URL_FILE: /etc/likestream/redis/url
REDIS_TIMEOUT: {{ .Values.redis.timeout | quote }}
LIKES_STREAM: {{ .Values.likes.stream | quote }}
LIKES_PARTITIONS: {{ .Values.likes.partitions | int64 | quote }}
{{- with .Values.redis.tls }}
{{- if .existingSecret }}
{{- if .ca }}
REDIS_TLS_CA: /etc/likestream/redis-tls/ca.crt
{{- end }}
{{- if .cert }}
REDIS_TLS_CERT: /etc/likestream/redis-tls/tls.crt
REDIS_TLS_KEY: /etc/likestream/redis-tls/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "likestream.settings.service" -}}
LOG_FORMAT: {{ .Values.log.format | quote }}
RUST_LOG: {{ .Values.log.level | quote }}
{{- with .Values.otel }}
{{- if .endpoint }}
OTEL_EXPORTER_OTLP_ENDPOINT: {{ .endpoint | quote }}
OTEL_EXPORTER_OTLP_PROTOCOL: {{ .protocol | quote }}
OTEL_TRACES_EXPORTER: {{ .traces | quote }}
OTEL_METRICS_EXPORTER: {{ .metrics | quote }}
OTEL_TRACES_SAMPLER: {{ .sampler | quote }}
{{- if hasSuffix "ratio" .sampler }}
OTEL_TRACES_SAMPLER_ARG: {{ .samplerArg | quote }}
{{- end }}
{{- if .tls.existingSecret }}
{{- if .tls.ca }}
OTEL_EXPORTER_OTLP_CERTIFICATE: /etc/likestream/otel-tls/ca.crt
{{- end }}
{{- if .tls.cert }}
OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: /etc/likestream/otel-tls/tls.crt
OTEL_EXPORTER_OTLP_CLIENT_KEY: /etc/likestream/otel-tls/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "likestream.settings.given" -}}
{{- range $name, $value := . }}
{{ $name }}: {{ kindIs "float64" $value | ternary (int64 $value) $value | quote }}
{{- end }}
{{- end -}}

{{- define "likestream.settings.ingest" -}}
{{ include "likestream.settings.redis" . }}
{{ include "likestream.settings.service" . }}
INGEST_LISTEN: {{ printf "%s:8080" .Values.listenAddress | quote }}
INGEST_ADMIN_LISTEN: {{ printf "%s:8081" .Values.listenAddress | quote }}
{{- with .Values.ingest }}
INGEST_THREADS: {{ .threads | int64 | quote }}
REDIS_ACK: {{ .redisAck | quote }}
INGEST_BACKLOG_LIMIT: {{ .backlogLimit | int64 | quote }}
INGEST_DOCS: {{ .docs | quote }}
DRAIN_TIMEOUT: {{ .drainTimeout | quote }}
{{- with .userRate }}
INGEST_USER_RATE: {{ . | quote }}
{{- end }}
{{- with .addressRate }}
INGEST_ADDRESS_RATE: {{ . | quote }}
{{- end }}
{{- with .trustedProxies }}
INGEST_TRUSTED_PROXIES: {{ join "," . | quote }}
{{- end }}
{{- with .corsOrigins }}
INGEST_CORS_ORIGINS: {{ join "," . | quote }}
{{- end }}
INGEST_AUTH: {{ .auth.methods | join "," | default "off" | quote }}
{{- if has "api-key" .auth.methods }}
INGEST_API_KEYS_FILE: /etc/likestream/api-keys/api-keys
{{- end }}
{{- if has "jwt" .auth.methods }}
{{- with .auth.jwt }}
INGEST_JWT_ALGORITHMS: {{ join "," .algorithms | quote }}
INGEST_JWT_ISSUER: {{ .issuer | quote }}
INGEST_JWT_AUDIENCE: {{ .audience | quote }}
{{- if .jwks }}
INGEST_JWT_JWKS: {{ .jwks | quote }}
{{- if .jwksCa.existingSecret }}
INGEST_JWT_JWKS_CA: /etc/likestream/jwks-ca/ca.crt
{{- end }}
{{- else }}
INGEST_JWT_KEY_FILE: /etc/likestream/jwt-key/jwt-key
{{- end }}
{{- end }}
{{- end }}
{{- if .tls.existingSecret }}
INGEST_TLS_CERT: /etc/likestream/tls/tls.crt
INGEST_TLS_KEY: /etc/likestream/tls/tls.key
{{- end }}
{{- include "likestream.settings.given" .settings }}
{{- end }}
{{- end -}}

{{- define "likestream.settings.consumer" -}}
{{ include "likestream.settings.redis" . }}
{{ include "likestream.settings.service" . }}
DATABASE_URL_FILE: /etc/likestream/database/url
LIKES_GROUP: {{ .Values.likes.group | quote }}
CONSUMER_ADMIN_LISTEN: {{ printf "%s:8082" .Values.listenAddress | quote }}
{{- with .Values.consumer }}
CONSUMER_PARTITIONS: {{ eq .ownership "static" | ternary (printf "ordinal/%d" (int64 .replicas)) "auto" }}
BATCH_ROWS: {{ .batchRows | int64 | quote }}
BATCH_LINGER: {{ .batchLinger | quote }}
STREAM_RETENTION: {{ .streamRetention | quote }}
POSTGRES_POOLING: {{ .pooling | quote }}
DRAIN_TIMEOUT: {{ .drainTimeout | quote }}
{{- include "likestream.settings.given" .settings }}
{{- end }}
{{- end -}}

{{- define "likestream.settings.likesctl" -}}
{{ include "likestream.settings.redis" . }}
DATABASE_URL_FILE: /etc/likestream/database/url
LIKES_GROUP: {{ .Values.likes.group | quote }}
{{- end -}}

{{- define "likestream.settings.migration" -}}
DATABASE_URL_FILE: /etc/likestream/database/url
STARTUP_TIMEOUT: {{ .Values.migration.startupTimeout | quote }}
{{- end -}}

{{/* Converts such a map to a list of environment variables. */}}
{{- define "likestream.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/*
Returns the resource attributes of spans and metrics. Kubernetes expands $(NAME) only if NAME is defined earlier in the list.
*/}}
{{- define "likestream.env.telemetry" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_UID
  valueFrom:
    fieldRef:
      fieldPath: metadata.uid
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: OTEL_RESOURCE_ATTRIBUTES
  value: >-
    service.instance.id=$(POD_NAMESPACE).$(POD_NAME).{{ .component }},k8s.namespace.name=$(POD_NAMESPACE),k8s.pod.name=$(POD_NAME),k8s.pod.uid=$(POD_UID),k8s.container.name={{ .component }},k8s.{{ .kind }}.name={{ include "likestream.fullname" .root }}-{{ .component }},k8s.node.name=$(NODE_NAME)
    {{- range $name, $value := .root.Values.otel.resourceAttributes }},{{ $name }}={{ $value }}{{ end }}
{{- if .root.Values.otel.endpoint }}
{{- with .root.Values.otel.headers }}
{{- if .existingSecret }}
{{- /* A variable, because headers are the only secret that the programs cannot read from a file. */}}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
