package oa

import (
	"context"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Amount is a sum of money.
type Amount struct {
	Value    string `json:"value"`
	Currency string `json:"currency,omitzero"`
}

// Field is a line of a task.
type Field struct {
	Key     string `json:"key,omitzero"`
	Label   string `json:"label,omitzero"`
	LabelZH string `json:"label_zh,omitzero"`
	Value   string `json:"value"`
}

// Link leads to something that belongs to a task.
type Link struct {
	Title string `json:"title"`
	URL   string `json:"url"`
}

// taskRequest is the body that creates or replaces a task.
type taskRequest struct {
	ID            string         `json:"id"` // the OA system's
	Template      string         `json:"template"`
	Title         string         `json:"title"`
	Summary       string         `json:"summary"`
	Assignee      string         `json:"assignee"`  // user id or localpart
	Applicant     string         `json:"applicant"` // the same, for who has an account here
	ApplicantName string         `json:"applicant_name"`
	Amount        *amountRequest `json:"amount"`
	Fields        []Field        `json:"fields"`
	Links         []Link         `json:"links"`
	LowRisk       *bool          `json:"low_risk"`
	StepUp        bool           `json:"step_up"`
}

type amountRequest struct {
	Value    jsontext.Value `json:"value"` // number or text
	Currency string         `json:"currency"`
}

// brief is what lists show.
type brief struct {
	Title     string  `json:"title"`
	Applicant string  `json:"applicant,omitzero"` // name
	Amount    *Amount `json:"amount,omitzero"`
	LowRisk   bool    `json:"low_risk"`
	StepUp    bool    `json:"step_up"`
}

// doc is what is known of a task beside its state.
type doc struct {
	Template string  `json:"template,omitzero"`
	Summary  string  `json:"summary,omitzero"`
	Fields   []Field `json:"fields,omitzero"`
	Links    []Link  `json:"links,omitzero"`
}

// task is a stored task, read.
type task struct {
	store.OATask
	brief brief
	doc   doc
}

func readTask(row store.OATask) (*task, error) {
	t := &task{OATask: row}
	if err := json.Unmarshal(row.Brief, &t.brief); err != nil {
		return nil, fmt.Errorf("approval %d: %w", row.NID, err)
	}
	if err := json.Unmarshal(row.Doc, &t.doc); err != nil {
		return nil, fmt.Errorf("approval %d: %w", row.NID, err)
	}
	return t, nil
}

// shortID is how people name a task.
func shortID(nid int64) string { return "#A" + strconv.FormatInt(nid, 10) }

var decimal = regexp.MustCompile(`^-?[0-9]{1,18}(\.[0-9]{1,6})?$`)

// The limits of a task: a card has to fit into an event.
const (
	maxID     = 200
	maxTitle  = 300
	maxText   = 4000
	maxFields = 40
	maxValue  = 1000
	maxLinks  = 10
	maxURL    = 2000
	maxDoc    = 20_000
)

func bad(field, format string, args ...any) error {
	return mxerr.InvalidParam("'"+field+"' "+fmt.Sprintf(format, args...)).With("field", field)
}

// user finds an account by user id or localpart.
func (o *OA) user(ctx context.Context, field, name string) (id.UserID, error) {
	u := id.UserID(name)
	if !strings.HasPrefix(name, "@") {
		u = id.NewUserID(name, o.d.ServerName)
	}
	if !event.ValidUserID(u) || u.Homeserver() != o.d.ServerName {
		return "", bad(field, "is %q, which is no user of %s", name, o.d.ServerName)
	}
	var states map[id.UserID]store.AccountState
	err := o.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		states, err = tx.AccountStates([]id.UserID{u})
		return err
	})
	if err != nil {
		return "", err
	}
	if s, exists := states[u]; !exists || s.Deactivated || s.Locked {
		return "", bad(field, "is %q, which has no account that can be used", name)
	}
	return u, nil
}

// build checks a request and makes what is stored of it.
func (o *OA) build(ctx context.Context, s *system, req *taskRequest) (store.OATask, error) {
	row := store.OATask{System: s.ID, ExternalID: req.ID}
	t, ok := s.template(req.Template)
	switch {
	case req.ID == "" || len(req.ID) > maxID || strings.ContainsAny(req.ID, "\x00\n"):
		return row, bad("id", "must have 1 to %d characters", maxID)
	case !ok:
		return row, bad("template", "is %q, which the configuration does not have", req.Template)
	case strings.TrimSpace(req.Title) == "" || len(req.Title) > maxTitle:
		return row, bad("title", "must have 1 to %d bytes", maxTitle)
	case len(req.Summary) > maxText:
		return row, bad("summary", "has more than %d bytes", maxText)
	case len(req.ApplicantName) > maxTitle:
		return row, bad("applicant_name", "has more than %d bytes", maxTitle)
	case req.Assignee == "":
		return row, bad("assignee", "is missing")
	}
	var err error
	if row.Assignee, err = o.user(ctx, "assignee", req.Assignee); err != nil {
		return row, err
	}
	name := req.ApplicantName
	if req.Applicant != "" {
		if row.Applicant, err = o.user(ctx, "applicant", req.Applicant); err != nil {
			return row, err
		}
		if name == "" {
			name = o.displayName(ctx, row.Applicant)
		}
	}
	amount, err := req.amount()
	if err != nil {
		return row, err
	}
	fields, err := req.fields(t)
	if err != nil {
		return row, err
	}
	if err := checkLinks(req.Links); err != nil {
		return row, err
	}
	above := t.exceeds(amount)
	row.StepUp = above || req.StepUp
	row.LowRisk = t.LowRisk && !row.StepUp && (req.LowRisk == nil || *req.LowRisk)
	if row.Brief, err = json.Marshal(brief{Title: req.Title, Applicant: name, Amount: amount, LowRisk: row.LowRisk, StepUp: row.StepUp}, json.Deterministic(true)); err != nil {
		return row, err
	}
	row.Doc, err = json.Marshal(doc{Template: req.Template, Summary: req.Summary, Fields: fields, Links: req.Links}, json.Deterministic(true))
	if err == nil && len(row.Doc) > maxDoc {
		err = mxerr.TooLarge(fmt.Sprintf("the task has more than %d bytes", maxDoc))
	}
	return row, err
}

// displayName is what somebody is called, the user id where that is unknown.
func (o *OA) displayName(ctx context.Context, u id.UserID) string {
	p, err := o.d.Profiles.Get(ctx, u)
	if err != nil || p.DisplayName == "" {
		return string(u)
	}
	return p.DisplayName
}

func (req *taskRequest) amount() (*Amount, error) {
	if req.Amount == nil {
		return nil, nil
	}
	text := string(req.Amount.Value)
	if req.Amount.Value.Kind() == '"' {
		if err := json.Unmarshal(req.Amount.Value, &text); err != nil {
			return nil, bad("amount.value", "is no number")
		}
	}
	switch {
	case !decimal.MatchString(text):
		return nil, bad("amount.value", "must be a number such as 12800.00")
	case len(req.Amount.Currency) > 10:
		return nil, bad("amount.currency", "has more than 10 characters")
	}
	return &Amount{Value: text, Currency: req.Amount.Currency}, nil
}

func (req *taskRequest) fields(t *Template) ([]Field, error) {
	if len(req.Fields) > maxFields {
		return nil, bad("fields", "has more than %d entries", maxFields)
	}
	out, has := []Field{}, map[string]bool{}
	for i, f := range req.Fields {
		at := fmt.Sprintf("fields[%d]", i)
		if len(f.Value) > maxValue || len(f.Label) > maxTitle || len(f.LabelZH) > maxTitle || len(f.Key) > maxTitle {
			return nil, bad(at, "is longer than %d bytes", maxValue)
		}
		if len(t.Fields) > 0 {
			n := slices.IndexFunc(t.Fields, func(tf TemplateField) bool { return tf.Key == f.Key })
			if n < 0 || has[f.Key] {
				return nil, bad(at+".key", "is %q; the template %q has no such field, or it is there twice", f.Key, t.ID)
			}
			has[f.Key] = true
			f.Label, f.LabelZH = t.Fields[n].label("en"), t.Fields[n].label("zh")
		} else if f.Label == "" {
			if f.Label = f.Key; f.Label == "" {
				return nil, bad(at+".label", "is missing")
			}
		}
		out = append(out, f)
	}
	for _, tf := range t.Fields {
		if tf.Required && !has[tf.Key] {
			return nil, bad("fields", "lacks %q, which the template %q requires", tf.Key, t.ID)
		}
	}
	return out, nil
}

func checkLinks(links []Link) error {
	if len(links) > maxLinks {
		return bad("links", "has more than %d entries", maxLinks)
	}
	for i, l := range links {
		u, err := url.Parse(l.URL)
		if err != nil || len(l.URL) > maxURL || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return bad(fmt.Sprintf("links[%d].url", i), "must be an address such as https://oa.example.org/1")
		}
		if l.Title == "" || len(l.Title) > maxTitle {
			return bad(fmt.Sprintf("links[%d].title", i), "must have 1 to %d bytes", maxTitle)
		}
	}
	return nil
}

// template is the template of a task; one that the configuration does not have any more is the plain one.
func (o *OA) template(t *task) *Template {
	if s := o.systems[t.System]; s != nil {
		if found, ok := s.template(t.doc.Template); ok {
			return found
		}
	}
	return &plain
}

// remindAt is when the assignee is reminded next, 0 for never.
func remindAt(t *Template, now int64) int64 {
	if t.RemindAfter <= 0 {
		return 0
	}
	return now + t.RemindAfter.Milliseconds()
}

// view is a task as the API shows it.
type view struct {
	ID       string    `json:"id"`
	Short    string    `json:"short_id"`
	System   string    `json:"system"`
	Version  int64     `json:"version"`
	Status   string    `json:"status"`
	Title    string    `json:"title"`
	Assignee id.UserID `json:"assignee"`
	// Applicant is "" for who has no account here.
	Applicant     id.UserID `json:"applicant,omitzero"`
	ApplicantName string    `json:"applicant_name,omitzero"`
	Amount        *Amount   `json:"amount,omitzero"`
	LowRisk       bool      `json:"low_risk"`
	StepUp        bool      `json:"step_up"`
	doc           `json:",inline"`
	Created       string        `json:"created"`
	Updated       string        `json:"updated"`
	Decision      *decisionView `json:"decision,omitzero"`
}

type decisionView struct {
	By       string `json:"by"`
	At       string `json:"at"`
	Via      string `json:"via"`
	Reason   string `json:"reason,omitzero"`
	Callback string `json:"callback,omitzero"` // waiting, done, refused, given_up
	Answer   string `json:"answer,omitzero"`
	Tries    int64  `json:"tries,omitzero"`
}

var callbackStates = map[int64]string{
	store.OACallbackWaiting: "waiting", store.OACallbackDone: "done", store.OACallbackRefused: "refused", store.OACallbackGivenUp: "given_up",
}

func formatTime(ms int64) string {
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

func (t *task) view(cb *store.OACallback) view {
	out := view{
		ID: t.ExternalID, Short: shortID(t.NID), System: t.System, Version: t.Version, Status: t.Status, Title: t.brief.Title, Assignee: t.Assignee,
		Applicant: t.Applicant, ApplicantName: t.brief.Applicant, Amount: t.brief.Amount, LowRisk: t.LowRisk, StepUp: t.StepUp, doc: t.doc,
		Created: formatTime(t.Created), Updated: formatTime(t.Updated),
	}
	if t.Decided != 0 {
		d := &decisionView{By: t.DecidedBy, At: formatTime(t.Decided), Via: t.Via, Reason: string(t.Reason)}
		if cb != nil {
			d.Callback, d.Answer, d.Tries = callbackStates[cb.State], cb.Answer, cb.Tries
		}
		out.Decision = d
	}
	return out
}
