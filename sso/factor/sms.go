package factor

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"text/template"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// smsData is what the templates of the gateway's request are made of.
type smsData struct {
	Number   string // +8613800138000
	National string // 13800138000: without the country for China, without + for others
	Digits   string // 8613800138000
	Code     string
	Text     string // what the SMS says
	Lang     string // en or zh
	Now      time.Time
	Nonce    string // another one for every request
}

// smsFuncs are for what gateways want: escaping, and signatures by one digest. A gateway whose signature takes several steps (阿里云,
// 腾讯云) is reached by way of a relay.
var smsFuncs = template.FuncMap{
	"json": func(v any) (string, error) {
		b, err := json.Marshal(v)
		return string(b), err
	},
	"query":  url.QueryEscape,
	"base64": func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
	"md5": func(s string) string {
		h := md5.Sum([]byte(s))
		return hex.EncodeToString(h[:])
	},
	"sha256": func(s string) string {
		h := sha256.Sum256([]byte(s))
		return hex.EncodeToString(h[:])
	},
	"hmac_sha1_base64": func(key, s string) string {
		h := hmac.New(sha1.New, []byte(key))
		h.Write([]byte(s))
		return base64.StdEncoding.EncodeToString(h.Sum(nil))
	},
	"hmac_sha256": func(key, s string) string {
		h := hmac.New(sha256.New, []byte(key))
		h.Write([]byte(s))
		return hex.EncodeToString(h.Sum(nil))
	},
	"unix":    func(t time.Time) string { return fmt.Sprint(t.Unix()) },
	"rfc3339": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
}

const (
	smsTimeout = 10 * time.Second
	maxAnswer  = 64 << 10 // bytes of a gateway's answer
)

var smsTexts = map[string]string{
	"en": "{{.Code}} is your sign-in code. It is good for 5 minutes. Give it to nobody.",
	"zh": "您的登录验证码是 {{.Code}}，5 分钟内有效。请勿告诉任何人。",
}

// gateway sends SMS.
type gateway struct {
	cfg       SMSConfig
	client    *http.Client
	url, body *template.Template
	headers   map[string]*template.Template
	texts     map[string]*template.Template
	expect    *regexp.Regexp
}

func newGateway(cfg *SMSConfig, client *http.Client) (*gateway, error) {
	g := &gateway{cfg: *cfg, headers: map[string]*template.Template{}, texts: map[string]*template.Template{}}
	if client != nil {
		c := *client
		// A redirect would carry the code to an address that nobody configured.
		c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		g.client = &c
	}
	var err error
	if g.url, err = parseTemplate("url", cfg.URL); err != nil {
		return nil, err
	}
	if g.body, err = parseTemplate("body", cfg.Body); err != nil {
		return nil, err
	}
	for name, value := range cfg.Headers {
		if g.headers[name], err = parseTemplate("header "+name, value); err != nil {
			return nil, err
		}
	}
	for lang, text := range map[string]string{"en": cfg.TextEN, "zh": cfg.TextZH} {
		if text == "" {
			text = smsTexts[lang]
		}
		if g.texts[lang], err = parseTemplate("text", text); err != nil {
			return nil, err
		}
	}
	if cfg.Expect != "" {
		if g.expect, err = regexp.Compile(cfg.Expect); err != nil {
			return nil, fmt.Errorf("expect: %w", err)
		}
	}
	switch g.cfg.Method {
	case "":
		g.cfg.Method = http.MethodPost
	case http.MethodGet, http.MethodPost, http.MethodPut:
	default:
		return nil, fmt.Errorf("method is %q; it must be GET, POST or PUT", g.cfg.Method)
	}
	// A wrong field in a template shows now and not when somebody waits for a code.
	req, err := g.request(context.Background(), smsData{Number: "+8613800138000", Code: "000000", Lang: "en", Now: time.Unix(0, 0)})
	if err != nil {
		return nil, err
	}
	if (req.URL.Scheme != "https" && req.URL.Scheme != "http") || req.URL.Host == "" {
		return nil, errors.New("url must be an address that begins with https://")
	}
	return g, nil
}

func (g *gateway) request(ctx context.Context, d smsData) (*http.Request, error) {
	text := g.texts[d.Lang]
	if text == nil {
		text = g.texts["en"]
	}
	d.Digits = strings.TrimPrefix(d.Number, "+")
	d.National = d.Digits
	if rest, ok := strings.CutPrefix(d.Number, "+86"); ok {
		d.National = rest
	}
	d.Nonce = rand.Text()
	run := func(t *template.Template) (string, error) {
		var b bytes.Buffer
		err := t.Execute(&b, d)
		return b.String(), err
	}
	var err error
	if d.Text, err = run(text); err != nil {
		return nil, err
	}
	target, err := run(g.url)
	if err != nil {
		return nil, err
	}
	body, err := run(g.body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, g.cfg.Method, target, strings.NewReader(body))
	if err != nil {
		return nil, errors.New("the templates of the SMS gateway make no request") // the error would show the code
	}
	for name, t := range g.headers {
		value, err := run(t)
		if err != nil {
			return nil, err
		}
		req.Header.Set(name, value)
	}
	return req, nil
}

var errSMS = mxerr.New(http.StatusBadGateway, "M_UNKNOWN", "the SMS could not be sent; try again later, or use another second factor")

// send sends a code. Its errors hold neither the code nor the number.
func (g *gateway) send(ctx context.Context, d smsData) error {
	ctx, cancel := context.WithTimeout(ctx, smsTimeout)
	defer cancel()
	req, err := g.request(ctx, d)
	if err != nil {
		return err
	}
	resp, err := g.client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the address, which may hold the code
		}
		return fmt.Errorf("SMS gateway: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the SMS gateway's answer: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the SMS gateway answers %d", resp.StatusCode)
	}
	if g.expect != nil && !g.expect.Match(answer) {
		return errors.New("the SMS gateway's answer does not fit sso.factors.sms.expect")
	}
	return nil
}

var (
	chineseMobile = regexp.MustCompile(`^1[3-9]\d{9}$`)
	e164          = regexp.MustCompile(`^\+[1-9]\d{6,14}$`)
	errNumber     = mxerr.InvalidParam("this is no telephone number to which an SMS can be sent; begin with + and the country, or give a Chinese mobile number of 11 digits")
	errCountry    = mxerr.InvalidParam("no SMS can be sent to this country")
)

// CanonicalNumber brings a telephone number that a person has typed into the form +8613800138000. Without a country it is a
// Chinese mobile number. Errors: M_INVALID_PARAM.
func CanonicalNumber(typed string) (string, error) {
	n := strings.Map(func(c rune) rune {
		switch {
		case c >= '０' && c <= '９':
			return c - '０' + '0'
		case c == '＋':
			return '+'
		case c == ' ', c == '-', c == '(', c == ')', c == '.', c == '\u3000', c == '\u00a0', c == '－':
			return -1
		}
		return c
	}, typed)
	if rest, ok := strings.CutPrefix(n, "00"); ok {
		n = "+" + rest
	}
	switch {
	case chineseMobile.MatchString(n):
		n = "+86" + n
	case strings.HasPrefix(n, "86") && chineseMobile.MatchString(n[2:]):
		n = "+" + n
	}
	if !e164.MatchString(n) || (strings.HasPrefix(n, "+86") && !chineseMobile.MatchString(n[3:])) {
		return "", errNumber
	}
	return n, nil
}

// canonical is CanonicalNumber for the countries that the gateway serves.
func (g *gateway) canonical(typed string) (string, error) {
	n, err := CanonicalNumber(typed)
	if err != nil || len(g.cfg.Countries) == 0 {
		return n, err
	}
	for _, c := range g.cfg.Countries {
		if strings.HasPrefix(n, c) {
			return n, nil
		}
	}
	return "", errCountry
}

// hideNumber shows enough of a number for its owner to know it: +86•••••••8000.
func hideNumber(n string) string {
	if len(n) < 8 {
		return "•••"
	}
	return n[:3] + strings.Repeat("•", len(n)-7) + n[len(n)-4:]
}

// hideAddress shows enough of an e-mail address for its owner to know it: a•••@example.org.
func hideAddress(a string) string {
	at := strings.LastIndexByte(a, '@')
	if at < 1 {
		return "•••"
	}
	return a[:1] + "•••" + a[at:]
}
