{{- define "likestream.pod.security" -}}
runAsNonRoot: true
{{- with .Values.security }}
{{- if not (kindIs "invalid" .runAsUser) }}
runAsUser: {{ .runAsUser | int64 }}
{{- end }}
{{- if not (kindIs "invalid" .runAsGroup) }}
runAsGroup: {{ .runAsGroup | int64 }}
{{- end }}
{{- if not (kindIs "invalid" .fsGroup) }}
fsGroup: {{ .fsGroup | int64 }}
{{- end }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "likestream.container.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "likestream.pod.metadata" -}}
{{- $values := .values -}}
{{- with $values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
labels:
  {{- include "likestream.podLabels" . | nindent 2 }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Returns the fields that all pod specs share. */}}
{{- define "likestream.pod" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- /* No program calls the Kubernetes API. */}}
automountServiceAccountToken: false
{{- /* Service link variables could collide with the names of settings. */}}
enableServiceLinks: false
securityContext:
  {{- include "likestream.pod.security" .root | nindent 2 }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Returns the fields that all containers share. */}}
{{- define "likestream.container" -}}
image: {{ include "likestream.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "likestream.container.security" . | nindent 2 }}
resources:
  {{- toYaml .values.resources | nindent 2 }}
{{- end -}}

{{/*
Liveness does not depend on Redis or Postgres: an outage must not restart pods. The admin port listens before the first connection to
them, so /livez fails only if the process itself hangs.
*/}}
{{- define "likestream.probes" -}}
startupProbe:
  httpGet:
    path: /livez
    port: admin
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /livez
    port: admin
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /readyz
    port: admin
  periodSeconds: 5
  timeoutSeconds: 2
  failureThreshold: 2
{{- end -}}

{{- define "likestream.spread" -}}
{{- $selector := include "likestream.selector" . -}}
{{- with .values.spread }}
{{- if ne .zones "off" }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: {{ eq .zones "required" | ternary "DoNotSchedule" "ScheduleAnyway" }}
    labelSelector:
      matchLabels:
        {{- $selector | nindent 8 }}
    {{- /* Pods of the previous revision do not count. */}}
    matchLabelKeys:
      - {{ $.revisionLabel }}
{{- end }}
{{- if ne .nodes "off" }}
affinity:
  podAntiAffinity:
    {{- if eq .nodes "required" }}
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- $selector | nindent 12 }}
    {{- else }}
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- $selector | nindent 14 }}
    {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Converts a duration such as 1m 30s to whole seconds, rounded up. */}}
{{- define "likestream.seconds" -}}
{{- $ms := 0 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h)" . -1 -}}
{{- $number := regexFind "[0-9]+" . | atoi -}}
{{- $unit := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 -}}
{{- $ms = add $ms (mul $number (get $unit (regexFind "[a-z]+" .))) -}}
{{- end -}}
{{- div (add $ms 999) 1000 -}}
{{- end -}}

{{/* Returns the seconds from the start of termination to the end of draining. */}}
{{- define "likestream.draining" -}}
{{- add (default 0 .preStopSleepSeconds | int64) (include "likestream.seconds" .drainTimeout) -}}
{{- end -}}

{{/* Returns the grace period. The default adds 10 s to draining, for leaving the consumer group and flushing telemetry. */}}
{{- define "likestream.grace" -}}
{{- if kindIs "invalid" .terminationGracePeriodSeconds -}}
{{- add 10 (include "likestream.draining" .) -}}
{{- else -}}
{{- int64 .terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{/* A new pod is ready before an old one stops, unless required anti-affinity could leave no node for the new pod. */}}
{{- define "likestream.strategy" -}}
type: RollingUpdate
rollingUpdate:
  {{- if eq .spread.nodes "required" }}
  maxSurge: 0
  maxUnavailable: 1
  {{- else }}
  maxSurge: 1
  maxUnavailable: 0
  {{- end }}
{{- end -}}
