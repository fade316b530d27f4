package hooks

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// input is a post.
type input struct {
	body   []byte
	header http.Header
}

// format is a form of posts, and of the answers to them.
type format struct {
	parse func(in *input) ([]message, error)
	done  any                      // the answer to a post that was sent; nil: ours
	fail  func(e *mxerr.Error) any // the answer, with status 200, to one that was not; nil: ours
}

// formats are the forms by name.
var formats = map[string]*format{
	"generic":      {parse: parseGeneric},
	"cloudevents":  {parse: parseCloudEvents},
	"grafana":      {parse: parseAlerts},
	"alertmanager": {parse: parseAlerts},
	"gitlab":       {parse: parseGitLab},
	"wecom":        {parse: parseWeCom, done: robotDone, fail: failWeCom},
	"dingtalk":     {parse: parseDingTalk, done: robotDone, fail: failDingTalk},
	"feishu":       {parse: parseFeishu, done: feishuDone, fail: failFeishu},
}

// decode reads a JSON object strictly. Errors name the field in their text and as a JSON pointer in "path".
func decode[T any](b []byte) (T, error) {
	v, err := web.DecodeObject[T](b)
	e := mxerr.As(err)
	if e == nil {
		return v, err
	}
	var pointer jsontext.Pointer
	var again T
	var semantic *json.SemanticError
	var syntactic *jsontext.SyntacticError
	switch err := json.Unmarshal(b, &again); {
	case errors.As(err, &semantic):
		pointer = semantic.JSONPointer
	case errors.As(err, &syntactic):
		pointer = syntactic.JSONPointer
	}
	return v, e.With("path", string(pointer))
}

// genericPost is the form of our own.
type genericPost struct {
	Title       string              `json:"title"`
	Text        string              `json:"text"`
	Markdown    string              `json:"markdown"`
	MsgType     string              `json:"msgtype"`
	Mentions    []string            `json:"mentions"`
	MentionRoom bool                `json:"mention_room"`
	Key         string              `json:"key"`
	Thread      string              `json:"thread"`
	Idempotency string              `json:"idempotency_key"`
	Attachments []genericAttachment `json:"attachments"`
}

type genericAttachment struct {
	URL  string `json:"url"`
	Data string `json:"data"` // base64
	Name string `json:"name"`
	Type string `json:"type"`
}

func parseGeneric(in *input) ([]message, error) {
	p, err := decode[genericPost](in.body)
	if err != nil {
		return nil, err
	}
	m, err := p.message("")
	return []message{m}, err
}

// message checks a post; at is the JSON pointer of where it stands.
func (p *genericPost) message(at string) (message, error) {
	m := message{
		Title: p.Title, Text: p.Text, Markdown: p.Markdown, MsgType: p.MsgType, Mentions: p.Mentions, MentionRoom: p.MentionRoom,
		Key: p.Key, Thread: p.Thread, Idempotency: p.Idempotency,
	}
	switch {
	case p.Text != "" && p.Markdown != "":
		return m, badField(at+"/markdown", "cannot stand beside 'text': one of them is the message")
	case p.MsgType != "" && p.MsgType != "m.text" && p.MsgType != "m.notice":
		return m, badField(at+"/msgtype", "must be m.text or m.notice")
	}
	for i, who := range p.Mentions {
		if strings.TrimSpace(who) == "" || len(who) > 255 {
			return m, badField(fmt.Sprintf("%s/mentions/%d", at, i), "must be a user id, a name, a mail address or a phone number")
		}
	}
	for i, a := range p.Attachments {
		where := fmt.Sprintf("%s/attachments/%d", at, i)
		out := attachment{URL: a.URL, Name: a.Name, Type: a.Type, at: where}
		switch {
		case (a.URL == "") == (a.Data == ""):
			return m, badField(where, "must have one of: url, data")
		case a.Data != "":
			b, err := decodeBase64(a.Data)
			if err != nil {
				return m, badField(where+"/data", "is not base64")
			}
			out.Data = b
		}
		m.Attachments = append(m.Attachments, out)
	}
	return m, nil
}

// cloudEvent is an event in CloudEvents' JSON format, as far as messages need it.
type cloudEvent struct {
	SpecVersion string         `json:"specversion"`
	ID          string         `json:"id"`
	Source      string         `json:"source"`
	Type        string         `json:"type"`
	Subject     string         `json:"subject"`
	Data        jsontext.Value `json:"data"`
	DataBase64  string         `json:"data_base64"`
}

// parseCloudEvents takes events in structured, binary and batched mode. Spec: CloudEvents 1.0, "HTTP Protocol Binding".
func parseCloudEvents(in *input) ([]message, error) {
	mediaType, _, _ := strings.Cut(in.header.Get("Content-Type"), ";")
	mediaType = strings.ToLower(strings.TrimSpace(mediaType))
	if mediaType == "application/cloudevents-batch+json" {
		var list []cloudEvent
		if err := json.Unmarshal(in.body, &list); err != nil {
			return nil, mxerr.BadJSON("the body must be an array of CloudEvents").With("path", "")
		}
		if len(list) > 100 {
			return nil, mxerr.BadJSON("a batch may have 100 events at most").With("path", "")
		}
		var out []message
		for i := range list {
			m, err := list[i].message(fmt.Sprintf("/%d", i))
			if err != nil {
				return nil, err
			}
			out = append(out, m)
		}
		return out, nil
	}
	var e cloudEvent
	if in.header.Get("Ce-Specversion") != "" {
		e = cloudEvent{
			SpecVersion: in.header.Get("Ce-Specversion"), ID: in.header.Get("Ce-Id"), Source: in.header.Get("Ce-Source"),
			Type: in.header.Get("Ce-Type"), Subject: in.header.Get("Ce-Subject"), Data: in.body,
		}
		if len(in.body) > 0 && !e.Data.IsValid() {
			if strings.HasSuffix(mediaType, "json") {
				return nil, mxerr.NotJSON("the body is not JSON")
			}
			quoted, err := json.Marshal(strings.ToValidUTF8(string(in.body), "�"))
			if err != nil {
				return nil, err
			}
			e.Data = quoted
		}
	} else {
		var err error
		if e, err = decode[cloudEvent](in.body); err != nil {
			return nil, err
		}
	}
	m, err := e.message("")
	return []message{m}, err
}

func (e *cloudEvent) message(at string) (message, error) {
	switch {
	case e.SpecVersion == "":
		return message{}, badField(at+"/specversion", "is missing: this is no CloudEvent")
	case !strings.HasPrefix(e.SpecVersion, "1."):
		return message{}, badField(at+"/specversion", "is %q; 1.0 is understood", e.SpecVersion)
	case e.ID == "":
		return message{}, badField(at+"/id", "is missing")
	case e.Source == "":
		return message{}, badField(at+"/source", "is missing")
	case e.Type == "":
		return message{}, badField(at+"/type", "is missing")
	}
	var m message
	data := gjson.ParseBytes(e.Data)
	if data.IsObject() && (data.Get("text").Type == gjson.String || data.Get("markdown").Type == gjson.String) {
		p, err := decode[genericPost](e.Data)
		if err == nil {
			m, err = p.message(at + "/data")
		}
		if err != nil {
			return m, err
		}
	} else {
		m.Markdown = "**" + escapeMarkdown(e.Type) + "** · " + escapeMarkdown(e.Source)
		if e.Subject != "" {
			m.Markdown += " · " + escapeMarkdown(e.Subject)
		}
		switch {
		case data.Type == gjson.String:
			m.Markdown += "\n\n" + escapeMarkdown(data.Str)
		case len(e.Data) > 0:
			v := e.Data.Clone()
			if err := v.Indent(); err != nil {
				return m, badField(at+"/data", "is not JSON")
			}
			m.Markdown += "\n\n```json\n" + shorten(string(v), 8000) + "\n```"
		}
	}
	if m.Idempotency == "" {
		m.Idempotency = string(hash(e.Source + "\x00" + e.ID)[:16]) // the two of them are unique. Spec: CloudEvents 1.0, "id"
		m.Idempotency = fmt.Sprintf("ce/%x", m.Idempotency)
	}
	return m, nil
}

// shorten cuts a text to so many bytes at most, between characters.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

// alerts is what Grafana and Alertmanager post; Grafana's form is Alertmanager's and more.
type alerts struct {
	Status            string            `json:"status"`
	Receiver          string            `json:"receiver"`
	GroupKey          string            `json:"groupKey"`
	Title             string            `json:"title"`   // Grafana
	Message           string            `json:"message"` // Grafana
	CommonLabels      map[string]string `json:"commonLabels"`
	CommonAnnotations map[string]string `json:"commonAnnotations"`
	ExternalURL       string            `json:"externalURL"`
	Truncated         int64             `json:"truncatedAlerts"`
	Alerts            []alert           `json:"alerts"`
}

type alert struct {
	Status       string            `json:"status"`
	Labels       map[string]string `json:"labels"`
	Annotations  map[string]string `json:"annotations"`
	StartsAt     string            `json:"startsAt"`
	EndsAt       string            `json:"endsAt"`
	GeneratorURL string            `json:"generatorURL"`
	DashboardURL string            `json:"dashboardURL"`
	PanelURL     string            `json:"panelURL"`
	SilenceURL   string            `json:"silenceURL"`
	ValueString  string            `json:"valueString"`
}

const shownAlerts = 15

// parseAlerts makes one message of a group of alerts. What becomes of the group is told in the thread of its first message.
func parseAlerts(in *input) ([]message, error) {
	a, err := decode[alerts](in.body)
	if err != nil {
		return nil, err
	}
	if a.Status != "firing" && a.Status != "resolved" {
		return nil, badField("/status", "is %q; firing or resolved was expected", a.Status)
	}
	if len(a.Alerts) == 0 {
		return nil, badField("/alerts", "is empty")
	}
	firing, first := 0, ""
	for i := range a.Alerts {
		if a.Alerts[i].Status == "firing" {
			firing++
		}
		if s := a.Alerts[i].StartsAt; first == "" || s < first {
			first = s
		}
	}
	name := a.CommonLabels["alertname"]
	if name == "" {
		name = a.Alerts[0].Labels["alertname"]
	}
	head := fmt.Sprintf("✅ **RESOLVED** %s", escapeMarkdown(name))
	if a.Status == "firing" {
		head = fmt.Sprintf("🔥 **FIRING: %d** %s", firing, escapeMarkdown(name))
	}
	if s := a.CommonLabels["severity"]; s != "" {
		head += " · " + escapeMarkdown(s)
	}
	lines := []string{head, ""}
	for i := range a.Alerts {
		if i == shownAlerts {
			lines = append(lines, fmt.Sprintf("- … and %d more", len(a.Alerts)-i))
			break
		}
		lines = append(lines, a.Alerts[i].line(a.Status))
	}
	if a.Truncated > 0 {
		lines = append(lines, fmt.Sprintf("- %d more were left out by the sender", a.Truncated))
	}
	if safeURL([]byte(a.ExternalURL)) {
		lines = append(lines, "", "["+escapeMarkdown(a.ExternalURL)+"](<"+a.ExternalURL+">)")
	}
	m := message{Markdown: strings.Join(lines, "\n")}
	if a.GroupKey != "" {
		m.Thread = fmt.Sprintf("alerts/%x", hash(a.GroupKey + "\x00" + first)[:16])
	}
	return []message{m}, nil
}

// line is an alert as an entry of a list.
func (a *alert) line(group string) string {
	text := ""
	for _, name := range []string{"summary", "description", "message"} {
		if text = a.Annotations[name]; text != "" {
			break
		}
	}
	if text == "" {
		text = a.Labels["alertname"]
	}
	out := "- "
	if a.Status != group {
		out += "**" + escapeMarkdown(a.Status) + "** "
	}
	out += escapeMarkdown(shorten(strings.Join(strings.Fields(text), " "), 500))
	for _, label := range []string{"instance", "job", "namespace", "pod"} {
		if v := a.Labels[label]; v != "" {
			out += " · " + label + "=`" + strings.ReplaceAll(shorten(v, 100), "`", "'") + "`"
		}
	}
	for _, l := range []struct{ name, url string }{{"source", a.GeneratorURL}, {"dashboard", a.DashboardURL}, {"panel", a.PanelURL}, {"silence", a.SilenceURL}, {"runbook", a.Annotations["runbook_url"]}} {
		if safeURL([]byte(l.url)) && !strings.ContainsAny(l.url, "<>\n") && len(l.url) < 500 {
			out += " [" + l.name + "](<" + l.url + ">)"
		}
	}
	return out
}

// Sample is a post in a format, for tests of a hook.
func Sample(name string) string {
	switch name {
	case "cloudevents":
		return `{"specversion":"1.0","id":"test-` + newSecret(AuthToken)[5:15] + `","source":"/moothall/test","type":"org.moothall.test","data":{"text":"This is a test. 这是一条测试消息。"}}`
	case "grafana", "alertmanager":
		return `{"version":"4","status":"firing","receiver":"test","groupKey":"","commonLabels":{"alertname":"Test"},"alerts":[{"status":"firing","labels":{"alertname":"Test"},"annotations":{"summary":"This is a test. 这是一条测试消息。"},"startsAt":"2026-01-01T00:00:00Z"}]}`
	case "gitlab":
		return `{"object_kind":"push","ref":"refs/heads/test","after":"1","user_name":"test","total_commits_count":0,"project":{"id":1,"path_with_namespace":"test/test","web_url":"https://gitlab.example.org/test/test"}}`
	case "wecom", "dingtalk":
		return `{"msgtype":"text","text":{"content":"This is a test. 这是一条测试消息。"}}`
	case "feishu":
		return `{"msg_type":"text","content":{"text":"This is a test. 这是一条测试消息。"}}`
	default:
		return `{"text":"This is a test. 这是一条测试消息。"}`
	}
}
