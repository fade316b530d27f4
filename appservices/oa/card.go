package oa

import (
	"fmt"
	"html"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// words are what the bot says in a language.
type words struct {
	lang, room, topic                            string
	applicant, amount, kind                      string
	approve, reject, details                     string
	reply, stepUp                                string // how to answer
	approved, rejected, withdrawn                string // by whom, when
	waits, refused, gaveUp                       string
	passedOn, reason, remind, todo, nothing      string
	more, toldApproved, toldRejected, toldClosed string
	unknown, onPage, changed, closed, foreign    string
	needReason, done, delegated, gone            string
}

var chinese = words{
	lang: "zh", room: "审批中心", topic: "待您审批的事项。发送“待办”查看全部。", applicant: "申请人", amount: "金额", kind: "类型", approve: "同意", reject: "驳回", details: "详情",
	reply: "也可以用 ✅ / ❌ 回应，或回复“同意”“驳回 原因”。", stepUp: "需要二次验证，请通过链接办理。",
	approved: "✅ %s 已同意（%s）", rejected: "❌ %s 已驳回（%s）", withdrawn: "↩️ %s 已撤回（%s）",
	waits: "⏳ OA 系统暂时无法连接，结果将自动送达，无需重复办理。", refused: "⚠️ OA 系统未接受该结果：%s", gaveUp: "⚠️ 结果未能送达 OA 系统，请联系管理员。",
	passedOn: "➡️ 已转交 %s", reason: "意见", remind: "⏰ 提醒：%s %s 正等待您审批。", todo: "待办 %d 项：", nothing: "没有待办事项。", more: "……另有 %d 项。",
	toldApproved: "✅ 您的申请 %s %s 已由 %s 同意。", toldRejected: "❌ 您的申请 %s %s 已被 %s 驳回。", toldClosed: "↩️ 您的申请 %s %s 已撤回。",
	unknown: "没有看懂。请回复“同意”“驳回 原因”“转交 @用户”，或发送“待办”。", onPage: "此事项需在页面上办理：%s", changed: "此事项已有更新，请查看最新内容后再办理。",
	closed: "%s 已办结（%s），不能再次办理。", foreign: "这不是您的审批事项。", needReason: "请注明驳回原因：驳回 原因", done: "已办理 %s。", delegated: "已将 %s 转交给 %s。", gone: "没有这个审批事项。",
}

var english = words{
	lang: "en", room: "Approvals", topic: "What waits for your decision. Write “todo” for a list.", applicant: "Applicant", amount: "Amount", kind: "Kind",
	approve: "Approve", reject: "Reject", details: "Details",
	reply: "Or react with ✅ / ❌, or reply “approve” or “reject why”.", stepUp: "This needs a second factor: please use the links.",
	approved: "✅ Approved by %s, %s", rejected: "❌ Rejected by %s, %s", withdrawn: "↩️ Withdrawn by %s, %s",
	waits:   "⏳ The OA system cannot be reached at the moment. It will be told as soon as it can: there is nothing to repeat.",
	refused: "⚠️ The OA system did not accept this: %s", gaveUp: "⚠️ The OA system could not be told. Please ask your administrator.",
	passedOn: "➡️ Passed on to %s", reason: "Comment", remind: "⏰ Reminder: %s %s waits for your decision.", todo: "%d open:", nothing: "Nothing is open.", more: "… and %d more.",
	toldApproved: "✅ Your request %s %s was approved by %s.", toldRejected: "❌ Your request %s %s was rejected by %s.", toldClosed: "↩️ Your request %s %s was withdrawn.",
	unknown: "Sorry? Please reply “approve”, “reject why”, “delegate @user”, or write “todo”.", onPage: "This has to be decided on its page: %s",
	changed: "This has changed meanwhile. Please look at it again.", closed: "%s is not open any more: it is %s.", foreign: "This approval is not yours.",
	needReason: "Please say why: reject why", done: "%s is done.", delegated: "%s was passed on to %s.", gone: "There is no such approval.",
}

// statusWords are what states are called.
func (w *words) status(s string) string {
	if w.lang != "zh" {
		return s
	}
	return map[string]string{store.OAApproved: "已同意", store.OARejected: "已驳回", store.OAWithdrawn: "已撤回", store.OAOpen: "待办"}[s]
}

// cardType is the key of the card's data in a message, for clients with a module that shows buttons.
const (
	cardType = "org.moothall.approval"
	cardKey  = "org\\.moothall\\.approval" // as a path of gjson
)

// text builds a message in plain text and HTML.
type text struct {
	plain, rich strings.Builder
}

func (m *text) line(s string) {
	m.plain.WriteString(s + "\n")
	m.rich.WriteString("<p>" + strings.ReplaceAll(html.EscapeString(s), "\n", "<br>") + "</p>")
}

func (m *text) head(s string) {
	m.plain.WriteString(s + "\n")
	m.rich.WriteString("<p><strong>" + html.EscapeString(s) + "</strong></p>")
}

func (m *text) list(rows [][2]string) {
	if len(rows) == 0 {
		return
	}
	m.rich.WriteString("<ul>")
	for _, r := range rows {
		m.plain.WriteString(r[0] + ": " + r[1] + "\n")
		m.rich.WriteString("<li>" + html.EscapeString(r[0]) + ": <strong>" + html.EscapeString(r[1]) + "</strong></li>")
	}
	m.rich.WriteString("</ul>")
}

func (m *text) links(links []Link) {
	if len(links) == 0 {
		return
	}
	rich := make([]string, len(links))
	for i, l := range links {
		m.plain.WriteString("[" + l.Title + "] " + l.URL + "\n")
		rich[i] = `<a href="` + html.EscapeString(l.URL) + `">[` + html.EscapeString(l.Title) + `]</a>`
	}
	m.rich.WriteString("<p>" + strings.Join(rich, " ") + "</p>")
}

// content is the message; to are who is mentioned by it.
func (m *text) content(msgType string, to ...id.UserID) object {
	if to == nil {
		to = []id.UserID{}
	}
	return object{
		"msgtype": msgType, "body": strings.TrimSuffix(m.plain.String(), "\n"), "format": "org.matrix.custom.html", "formatted_body": m.rich.String(),
		"m.mentions": object{"user_ids": to},
	}
}

// rows are the lines of a task in a language.
func (t *task) rows(w *words, tmpl *Template) [][2]string {
	var out [][2]string
	if name := tmpl.name(w.lang); name != "" {
		out = append(out, [2]string{w.kind, name})
	}
	if t.brief.Applicant != "" {
		out = append(out, [2]string{w.applicant, t.brief.Applicant})
	}
	if a := t.brief.Amount; a != nil {
		out = append(out, [2]string{w.amount, a.String()})
	}
	for _, f := range t.doc.Fields {
		label := f.Label
		if w.lang == "zh" && f.LabelZH != "" {
			label = f.LabelZH
		}
		out = append(out, [2]string{label, f.Value})
	}
	return out
}

// String is an amount as people read it.
func (a *Amount) String() string {
	whole, cents, point := strings.Cut(a.Value, ".")
	sign := ""
	if rest, ok := strings.CutPrefix(whole, "-"); ok {
		sign, whole = "-", rest
	}
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	out := sign + whole
	if point {
		out += "." + cents
	}
	if a.Currency != "" {
		out += " " + a.Currency
	}
	return out
}

// when is a time for people.
func when(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02 15:04") + " UTC" }

// outcome are the lines about a task that is not open.
func (t *task) outcome(w *words, by string, cb *store.OACallback) []string {
	format := map[string]string{store.OAApproved: w.approved, store.OARejected: w.rejected, store.OAWithdrawn: w.withdrawn}[t.Status]
	out := []string{fmt.Sprintf(format, by, when(t.Decided))}
	if len(t.Reason) > 0 {
		out = append(out, w.reason+": "+string(t.Reason))
	}
	if cb != nil {
		switch cb.State {
		case store.OACallbackWaiting:
			out = append(out, w.waits)
		case store.OACallbackRefused:
			out = append(out, fmt.Sprintf(w.refused, cb.Answer))
		case store.OACallbackGivenUp:
			out = append(out, w.gaveUp)
		}
	}
	return out
}

// card is the message of an open task; link is the address of its page.
func (t *task) card(w *words, tmpl *Template, link string) object {
	m := t.cardText(w, tmpl)
	links := cardLinks(w, link)
	m.links(links)
	m.links(t.doc.Links)
	switch {
	case t.LowRisk:
		m.line(w.reply)
	case t.StepUp:
		m.line(w.stepUp)
	}
	out := m.content("m.text", t.Assignee)
	data := t.data()
	data["links"] = object{"approve": links[0].URL, "reject": links[1].URL, "details": links[2].URL}
	out[cardType] = data
	return out
}

func cardLinks(w *words, link string) []Link {
	return []Link{{w.approve, link + "?do=approve"}, {w.reject, link + "?do=reject"}, {w.details, link}}
}

// closedCard is the message of a task that this person cannot decide any more.
func (t *task) closedCard(w *words, tmpl *Template, lines []string) object {
	m := t.cardText(w, tmpl)
	m.links(t.doc.Links)
	for _, l := range lines {
		m.line(l)
	}
	out := m.content("m.text")
	data := t.data()
	data["outcome"] = strings.Join(lines, "\n")
	out[cardType] = data
	return out
}

func (t *task) cardText(w *words, tmpl *Template) *text {
	m := &text{}
	m.head(shortID(t.NID) + " " + t.brief.Title)
	m.list(t.rows(w, tmpl))
	if t.doc.Summary != "" {
		m.line(t.doc.Summary)
	}
	return m
}

func (t *task) data() object {
	out := object{
		"v": 1, "id": t.ExternalID, "system": t.System, "short_id": shortID(t.NID), "version": t.Version, "status": t.Status, "title": t.brief.Title,
		"applicant": t.brief.Applicant, "low_risk": t.LowRisk, "step_up": t.StepUp,
	}
	if a := t.brief.Amount; a != nil { // as text: events hold no fractions
		out["amount"] = object{"value": a.Value, "currency": a.Currency}
	}
	if t.Decided != 0 {
		out["decided_by"], out["decided_at"] = t.DecidedBy, t.Decided
	}
	return out
}

// edit makes content that takes the place of an earlier message. Nobody is mentioned anew.
func edit(content object, of id.EventID) object {
	out := object{
		"msgtype": content["msgtype"], "body": "* " + content["body"].(string), "format": content["format"], "formatted_body": "* " + content["formatted_body"].(string),
		"m.mentions": object{}, "m.new_content": content, "m.relates_to": object{"rel_type": "m.replace", "event_id": of},
	}
	return out
}

// replyTo makes content a reply.
func replyTo(content object, to id.EventID) object {
	content["m.relates_to"] = object{"m.in_reply_to": object{"event_id": to}}
	return content
}

// reminder is a reply to the card, which may be answered as the card may.
func (t *task) reminder(w *words) object {
	out := notice(fmt.Sprintf(w.remind, shortID(t.NID), t.brief.Title), t.Assignee)
	out[cardType] = object{"v": 1, "id": t.ExternalID, "system": t.System, "short_id": shortID(t.NID), "version": t.Version, "status": t.Status}
	return replyTo(out, t.CardEvent)
}

// notice is a message of one line.
func notice(line string, to ...id.UserID) object {
	m := &text{}
	m.line(line)
	return m.content("m.notice", to...)
}
