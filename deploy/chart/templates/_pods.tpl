{{/* What all pods have. */}}
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

{{/* The beginning of a pod's spec. */}}
{{- define "likestream.pod" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- /* Nothing here talks to Kubernetes. */}}
automountServiceAccountToken: false
{{- /* Variables with the addresses of all Services of the namespace could be taken for settings. */}}
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

{{/* The beginning of a container. */}}
{{- define "likestream.container" -}}
image: {{ include "likestream.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "likestream.container.security" . | nindent 2 }}
resources:
  {{- toYaml .values.resources | nindent 2 }}
{{- end -}}

{{/*
The admin port listens before the servers are reached, so /livez fails only where the process itself is stuck: a server that is away must
not have pods killed.
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
    {{- /* So that pods that are about to go don't count. */}}
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

{{/* A duration like 1m 30s in whole seconds, rounded up. */}}
{{- define "likestream.seconds" -}}
{{- $ms := 0 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h)" . -1 -}}
{{- $number := regexFind "[0-9]+" . | atoi -}}
{{- $unit := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 -}}
{{- $ms = add $ms (mul $number (get $unit (regexFind "[a-z]+" .))) -}}
{{- end -}}
{{- div (add $ms 999) 1000 -}}
{{- end -}}

{{/* What a pod needs from the end being known to its end. */}}
{{- define "likestream.draining" -}}
{{- add (default 0 .preStopSleepSeconds | int64) (include "likestream.seconds" .drainTimeout) -}}
{{- end -}}

{{/* 10 s more than that, to tell Redis good-bye and to flush telemetry. */}}
{{- define "likestream.grace" -}}
{{- if kindIs "invalid" .terminationGracePeriodSeconds -}}
{{- add 10 (include "likestream.draining" .) -}}
{{- else -}}
{{- int64 .terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{/* A new pod is ready before an old one goes, unless there may be no node for both. */}}
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
