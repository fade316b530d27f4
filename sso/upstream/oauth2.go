package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
	"golang.org/x/oauth2"
)

// oauth2Provider speaks OAuth 2.0 as the configuration describes it.
type oauth2Provider struct {
	cfg       Config
	client    *http.Client
	back      string
	now       func() time.Time
	log       *slog.Logger
	authorize []named
	requests  []request

	mu    sync.Mutex
	cache map[string]cached // answers that are the application's own, by request
}

type cached struct {
	body    []byte
	expires time.Time
}

// request is a Request that is ready.
type request struct {
	Request
	query, headers, form, json []named
}

func newOAuth2(cfg Config, client *http.Client, back string, now func() time.Time, log *slog.Logger) (*oauth2Provider, error) {
	o, err := compileOAuth2(cfg)
	if err != nil {
		return nil, err
	}
	o.client, o.back, o.now, o.log = client, back, now, log
	return o, nil
}

func compileOAuth2(cfg Config) (*oauth2Provider, error) {
	o := &oauth2Provider{cfg: cfg, cache: map[string]cached{}}
	var err error
	if o.authorize, err = newNamed("oauth2.authorize", cfg.OAuth2.Authorize); err != nil {
		return nil, err
	}
	for i, r := range cfg.OAuth2.Requests {
		path := fmt.Sprintf("oauth2.requests[%d]", i)
		q := request{Request: r}
		switch {
		case !idPattern.MatchString(r.Name) || strings.ContainsAny(r.Name, ".-"):
			return nil, problem(path+".name", "is %q; it must be a word, by which templates call the answer", r.Name)
		case !isHTTP(r.URL):
			return nil, problem(path+".url", "is %q; it must be an address", r.URL)
		case len(r.Form) > 0 && len(r.JSON) > 0:
			return nil, problem(path, "has form and json; one of them")
		}
		if q.Method == "" {
			q.Method = http.MethodGet
			if len(r.Form) > 0 || len(r.JSON) > 0 {
				q.Method = http.MethodPost
			}
		}
		if q.Method != http.MethodGet && q.Method != http.MethodPost {
			return nil, problem(path+".method", "is %q; it must be GET or POST", r.Method)
		}
		for _, v := range []struct {
			key   string
			pairs []Pair
			to    *[]named
		}{{".query", r.Query, &q.query}, {".headers", r.Headers, &q.headers}, {".form", r.Form, &q.form}, {".json", r.JSON, &q.json}} {
			if *v.to, err = newNamed(path+v.key, v.pairs); err != nil {
				return nil, err
			}
		}
		o.requests = append(o.requests, q)
	}
	return o, nil
}

// data is what templates see from the start.
func (o *oauth2Provider) data(k *kept) map[string]any {
	return map[string]any{
		"client_id": o.cfg.ClientID, "client_secret": o.cfg.ClientSecret, "agent_id": o.cfg.OAuth2.AgentID,
		"redirect_uri": o.back, "code_verifier": k.Verifier, "scope": strings.Join(o.cfg.Scopes, " "),
	}
}

func (o *oauth2Provider) begin(_ context.Context, b BeginParams, k *kept) (string, error) {
	k.Verifier = oauth2.GenerateVerifier()
	u, err := url.Parse(o.cfg.AuthorizeURL)
	if err != nil {
		return "", err
	}
	data := o.data(k)
	delete(data, "client_secret") // the address is the browser's
	delete(data, "code_verifier")
	data["code_challenge"], data["state"] = oauth2.S256ChallengeFromVerifier(k.Verifier), b.State
	q := u.Query()
	for _, n := range o.authorize {
		value, err := n.value(data)
		if err != nil {
			return "", err
		}
		if value != "" {
			q.Set(n.name, value)
		}
	}
	q.Set("state", b.State)
	u.RawQuery = q.Encode()
	return u.String(), nil
}

func (o *oauth2Provider) finish(ctx context.Context, form url.Values, k *kept) (assertion, error) {
	if e := form.Get("error"); e != "" {
		return assertion{}, answeredError(e, form.Get("error_description"))
	}
	codes := form[o.cfg.OAuth2.CodeParam]
	if len(codes) == 0 {
		codes = form["code"]
	}
	if len(codes) != 1 || codes[0] == "" || len(codes[0]) > 4096 {
		return assertion{}, errors.Join(errDenied, errors.New("the answer has no code")) // 企业微信: the person said no
	}
	data := o.data(k)
	data["code"] = codes[0]
	c := claims{}
	for i := range o.requests {
		r := &o.requests[i]
		body, err := o.answer(ctx, r, data)
		if err != nil {
			o.forget() // an application's token may have been withdrawn
			return assertion{}, fmt.Errorf("request %s: %w", r.Name, err)
		}
		v, err := parseClaims(body)
		if err != nil {
			return assertion{}, fmt.Errorf("request %s: %w", r.Name, err)
		}
		data[r.Name] = map[string]any(v)
		if r.Expires == "" {
			c[r.Name] = map[string]any(v)
		}
	}
	return assertion{claims: c}, nil
}

func (o *oauth2Provider) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.cache)
}

// answer makes a request, unless its answer is one that is kept.
func (o *oauth2Provider) answer(ctx context.Context, r *request, data map[string]any) ([]byte, error) {
	if r.Expires != "" {
		o.mu.Lock()
		have := o.cache[r.Name]
		o.mu.Unlock()
		if o.now().Before(have.expires) {
			return have.body, nil
		}
	}
	body, err := o.send(ctx, r, data)
	if err != nil {
		return nil, err
	}
	if r.OK != "" && gjson.GetBytes(body, r.OK).String() != r.OKValue {
		return nil, fmt.Errorf("%s is %q, not %q: %s", r.OK, gjson.GetBytes(body, r.OK).String(), r.OKValue,
			cut(gjson.GetBytes(body, "errmsg").String()+gjson.GetBytes(body, "msg").String(), 200))
	}
	if r.Need != "" && gjson.GetBytes(body, r.Need).String() == "" {
		return nil, errors.Join(errMissing("identity"), fmt.Errorf("the answer has no %s", r.Need))
	}
	if r.Expires != "" {
		const early = time.Minute // so that it does not end on its way
		if life := time.Duration(gjson.GetBytes(body, r.Expires).Int()) * time.Second; life > early {
			o.mu.Lock()
			o.cache[r.Name] = cached{body, o.now().Add(min(life, 24*time.Hour) - early)}
			o.mu.Unlock()
		}
	}
	return body, nil
}

func (o *oauth2Provider) send(ctx context.Context, r *request, data map[string]any) ([]byte, error) {
	u, err := url.Parse(r.URL)
	if err != nil {
		return nil, err
	}
	q := u.Query()
	if err := fill(r.query, data, q.Set); err != nil {
		return nil, err
	}
	u.RawQuery = q.Encode()
	var body io.Reader
	kind := ""
	switch {
	case len(r.form) > 0:
		form := url.Values{}
		if err := fill(r.form, data, form.Set); err != nil {
			return nil, err
		}
		body, kind = strings.NewReader(form.Encode()), "application/x-www-form-urlencoded"
	case len(r.json) > 0:
		object := map[string]string{}
		if err := fill(r.json, data, func(name, value string) { object[name] = value }); err != nil {
			return nil, err
		}
		b, err := json.Marshal(object, json.Deterministic(true))
		if err != nil {
			return nil, err
		}
		body, kind = bytes.NewReader(b), "application/json"
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	req.Header.Set("Accept", "application/json")
	if err := fill(r.headers, data, req.Header.Set); err != nil {
		return nil, err
	}
	resp, err := o.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("answered %s: %s", resp.Status, cut(gjson.GetBytes(b, "code").String()+" "+gjson.GetBytes(b, "message").String(), 200))
	}
	if v := jsontext.Value(b); !v.IsValid() || v.Kind() != '{' {
		return nil, errors.New("the answer is no JSON object")
	}
	return b, nil
}

func fill(pairs []named, data map[string]any, set func(name, value string)) error {
	for _, n := range pairs {
		value, err := n.value(data)
		if err != nil {
			return err
		}
		set(n.name, value)
	}
	return nil
}
