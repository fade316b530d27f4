package homeserver

import (
	"cmp"
	"time"

	"github.com/moothall/moothall/appservices/oa"
)

// OA is about approvals: the OA systems that ask for them, and how.
type OA struct {
	Language     string     `yaml:"language"`
	RoomName     string     `yaml:"room_name"`
	LinkLifetime Duration   `yaml:"link_lifetime"`
	StepUpAge    Duration   `yaml:"step_up_age"`
	Systems      []OASystem `yaml:"systems"`
}

// OASystem is an OA system.
type OASystem struct {
	ID            string       `yaml:"id"`
	Name          string       `yaml:"name"`
	Token         Secret       `yaml:"token"`
	TokenFile     string       `yaml:"token_file"`
	Signature     Secret       `yaml:"signature"`
	SignatureFile string       `yaml:"signature_file"`
	Addresses     []string     `yaml:"addresses"`
	Callback      OACallback   `yaml:"callback"`
	Poll          OAPoll       `yaml:"poll"`
	Templates     []OATemplate `yaml:"templates"`
}

// OACallback is how an OA system is told of decisions.
type OACallback struct {
	URL         string     `yaml:"url"`
	Method      string     `yaml:"method"`
	Secret      Secret     `yaml:"secret"`
	SecretFile  string     `yaml:"secret_file"`
	Headers     []OAHeader `yaml:"headers"`
	Body        string     `yaml:"body"`
	ContentType string     `yaml:"content_type"`
	OK          string     `yaml:"ok"`
	OKValue     string     `yaml:"ok_value"`
	GiveUp      Duration   `yaml:"give_up"`
	Timeout     Duration   `yaml:"timeout"`
}

// OAHeader is a header of a request to an OA system. The value is a Secret, because tokens stand in headers.
type OAHeader struct {
	Name      string `yaml:"name"`
	Value     Secret `yaml:"value"`
	ValueFile string `yaml:"value_file"`
}

// OAPoll is how an OA system is asked for open approvals.
type OAPoll struct {
	URL      string     `yaml:"url"`
	Method   string     `yaml:"method"`
	Headers  []OAHeader `yaml:"headers"`
	Body     string     `yaml:"body"`
	Every    Duration   `yaml:"every"`
	Items    string     `yaml:"items"`
	Paths    OAPaths    `yaml:"paths"`
	Complete bool       `yaml:"complete"`
}

// OAPaths are JSON paths within an item.
type OAPaths struct {
	ID            string `yaml:"id"`
	Title         string `yaml:"title"`
	Summary       string `yaml:"summary"`
	Assignee      string `yaml:"assignee"`
	Applicant     string `yaml:"applicant"`
	ApplicantName string `yaml:"applicant_name"`
	Amount        string `yaml:"amount"`
	Currency      string `yaml:"currency"`
	Link          string `yaml:"link"`
	Template      string `yaml:"template"`
}

// OATemplate is a kind of approval.
type OATemplate struct {
	ID            string    `yaml:"id"`
	Name          string    `yaml:"name"`
	NameZH        string    `yaml:"name_zh"`
	LowRisk       bool      `yaml:"low_risk"`
	Threshold     string    `yaml:"threshold"`
	Currency      string    `yaml:"currency"`
	Fields        []OAField `yaml:"fields"`
	RequireReason bool      `yaml:"require_reason"`
	Delegate      bool      `yaml:"delegate"`
	RemindAfter   Duration  `yaml:"remind_after"`
}

// OAField is a field of a template.
type OAField struct {
	Key      string `yaml:"key"`
	Label    string `yaml:"label"`
	LabelZH  string `yaml:"label_zh"`
	Required bool   `yaml:"required"`
}

// OAConfig is the part of package oa.
func (c *Config) OAConfig() oa.Config {
	out := oa.Config{Language: c.OA.Language, RoomName: c.OA.RoomName, LinkLifetime: c.OA.LinkLifetime.Std(), StepUpAge: c.OA.StepUpAge.Std()}
	for _, s := range c.OA.Systems {
		addresses, _ := Listen{TrustedProxies: s.Addresses}.proxies() // checked before
		sys := oa.System{
			ID: s.ID, Name: s.Name, Token: string(s.Token), Signature: string(s.Signature), Addresses: addresses,
			Callback: oa.Callback{
				URL: s.Callback.URL, Method: s.Callback.Method, Secret: string(s.Callback.Secret), Headers: oaHeaders(s.Callback.Headers), Body: s.Callback.Body,
				ContentType: s.Callback.ContentType, OK: s.Callback.OK, OKValue: s.Callback.OKValue,
				GiveUp: cmp.Or(s.Callback.GiveUp.Std(), 7*24*time.Hour), Timeout: cmp.Or(s.Callback.Timeout.Std(), 15*time.Second),
			},
			Poll: oa.Poll{
				URL: s.Poll.URL, Method: s.Poll.Method, Headers: oaHeaders(s.Poll.Headers), Body: s.Poll.Body, Every: cmp.Or(s.Poll.Every.Std(), time.Minute),
				Items: s.Poll.Items, Paths: oa.Paths(s.Poll.Paths), Complete: s.Poll.Complete,
			},
		}
		for _, t := range s.Templates {
			tmpl := oa.Template{
				ID: t.ID, Name: t.Name, NameZH: t.NameZH, LowRisk: t.LowRisk, Threshold: t.Threshold, Currency: t.Currency, RequireReason: t.RequireReason,
				Delegate: t.Delegate, RemindAfter: t.RemindAfter.Std(),
			}
			for _, f := range t.Fields {
				tmpl.Fields = append(tmpl.Fields, oa.TemplateField{Key: f.Key, Label: f.Label, LabelZH: f.LabelZH, Required: f.Required})
			}
			sys.Templates = append(sys.Templates, tmpl)
		}
		out.Systems = append(out.Systems, sys)
	}
	return out
}

func oaHeaders(list []OAHeader) []oa.Header {
	out := make([]oa.Header, len(list))
	for i, h := range list {
		out[i] = oa.Header{Name: h.Name, Value: string(h.Value)}
	}
	return out
}

func (c *Config) checkOA(d *configReader) error {
	for i, s := range c.OA.Systems {
		if networks, err := (Listen{TrustedProxies: s.Addresses}).proxies(); err != nil || len(networks) != len(s.Addresses) {
			return d.complain(index("oa.systems", i)+".addresses", "%v", err)
		}
	}
	cfg := c.OAConfig()
	if f := cfg.Check(); f != nil {
		return d.complain("oa."+f.Path, "%s", f.Problem)
	}
	return nil
}
