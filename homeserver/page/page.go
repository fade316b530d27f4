// Package page is the kit of every HTML page that the server makes: layout, style, the company's name and colours,
// Chinese and English, protection against forged forms. Pages load nothing from elsewhere and need no JavaScript unless
// they say so.
package page

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/text/language"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

//go:embed files
var kitFiles embed.FS

// Languages are those of all pages; the first one is for those who prefer none of them.
var Languages = []string{"en", "zh"}

const (
	langCookie = "mh_lang"
	langParam  = "lang"
	assetPath  = "/_moothall/assets/"
)

// Branding is how the company shows itself. The zero value is Moothall's own look.
type Branding struct {
	Name        string // "" : Moothall
	Logo        []byte // SVG, PNG, JPEG or WebP; nil: Moothall's
	LogoType    string // media type of Logo
	Accent      string // colour of buttons and links, such as #0b6b57
	AccentInk   string // of the text on Accent
	AccentDark  string // Accent for those who prefer dark pages
	SupportURL  string // where people find help
	SupportText string // how that link is called; "": its address
}

// Config is what a Kit is made of.
type Config struct {
	ServerName string
	PublicURL  string // decides whether cookies are for https only
	Branding   Branding
}

// Kit makes Sets.
type Kit struct {
	cfg     Config
	secure  bool
	origin  string
	style   template.CSS
	logo    template.URL
	texts   map[string]map[string]string // by language
	matcher language.Matcher
	policy  string // Content-Security-Policy up to the parts that depend on the page
	assets  map[string]asset
}

type asset struct {
	body []byte
	kind string
}

// New makes a Kit.
func New(cfg Config) (*Kit, error) {
	u, err := url.Parse(cfg.PublicURL)
	if err != nil {
		return nil, fmt.Errorf("the public address: %w", err)
	}
	k := &Kit{
		cfg: cfg, secure: u.Scheme == "https", origin: u.Scheme + "://" + u.Host,
		matcher: language.NewMatcher([]language.Tag{language.English, language.Chinese}), assets: map[string]asset{},
	}
	style, err := kitFiles.ReadFile("files/style.css")
	if err != nil {
		return nil, err
	}
	k.style = template.CSS(string(style) + cfg.Branding.colours())
	sum := sha256.Sum256([]byte(k.style))
	k.policy = "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; img-src data: 'self'; base-uri 'none'; frame-ancestors 'none'"
	if b := cfg.Branding; len(b.Logo) > 0 {
		k.logo = template.URL("data:" + b.LogoType + ";base64," + base64.StdEncoding.EncodeToString(b.Logo))
	}
	files, err := fs.Sub(kitFiles, "files")
	if err != nil {
		return nil, err
	}
	k.texts, err = readTexts(files)
	return k, err
}

// colours overrides those of the style; the configuration was checked to hold nothing but colours.
func (b Branding) colours() string {
	var out strings.Builder
	write := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&out, "--%s:%s;", name, value)
		}
	}
	if b.Accent != "" || b.AccentInk != "" {
		out.WriteString("\n:root{")
		write("accent", b.Accent)
		write("accent-ink", b.AccentInk)
		out.WriteString("}")
	}
	if b.AccentDark != "" {
		out.WriteString("\n@media (prefers-color-scheme: dark){:root{")
		write("accent", b.AccentDark)
		out.WriteString("}}")
	}
	return out.String()
}

// readTexts reads LANG.json for every language; all must have the same keys.
func readTexts(fsys fs.FS) (map[string]map[string]string, error) {
	out := map[string]map[string]string{}
	for _, lang := range Languages {
		b, err := fs.ReadFile(fsys, lang+".json")
		if err != nil {
			return nil, err
		}
		var texts map[string]string
		if err := json.Unmarshal(b, &texts); err != nil {
			return nil, fmt.Errorf("%s.json: %w", lang, err)
		}
		out[lang] = texts
	}
	first := Languages[0]
	for _, lang := range Languages[1:] {
		for key := range out[first] {
			if _, ok := out[lang][key]; !ok {
				return nil, fmt.Errorf("%s.json has no text %q, which %s.json has", lang, key, first)
			}
		}
		for key := range out[lang] {
			if _, ok := out[first][key]; !ok {
				return nil, fmt.Errorf("%s.json has no text %q, which %s.json has", first, key, lang)
			}
		}
	}
	return out, nil
}

// Name is what the company calls the service.
func (k *Kit) Name() string {
	if k.cfg.Branding.Name != "" {
		return k.cfg.Branding.Name
	}
	return "Moothall"
}

// Secure tells whether people reach the server by https, so that cookies are kept from http.
func (k *Kit) Secure() bool { return k.secure }

// Set is the pages of one feature.
type Set struct {
	kit       *Kit
	templates map[string]map[string]*template.Template // by language and name, never executed: each rendering takes a clone
	texts     map[string]map[string]string
	scripts   map[string]string // address by name
}

// Set makes the pages of a feature from its folder: NAME.html defines the templates "title" and "body" of page NAME,
// LANG.json holds its texts (those of the kit are there too), partials.html what several pages use, and *.js is served for
// pages that say {{script "NAME.js"}}. In the templates:
//
//	{{t "key" args…}}   a text        {{lang}}   en or zh          {{csrf}}     the hidden field that every form needs
//	{{path}}            of this page  {{date ms}} a time            {{server}}   the server's name
//	{{brand}}           the company's name
func (k *Kit) Set(fsys fs.FS) (*Set, error) {
	s := &Set{kit: k, templates: map[string]map[string]*template.Template{}, texts: map[string]map[string]string{}, scripts: map[string]string{}}
	own, err := readTexts(fsys)
	if err != nil {
		return nil, err
	}
	files, err := fs.Glob(fsys, "*.html")
	if err != nil {
		return nil, err
	}
	scripts, err := fs.Glob(fsys, "*.js")
	if err != nil {
		return nil, err
	}
	for _, name := range scripts {
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(b)
		at := assetPath + base64.RawURLEncoding.EncodeToString(sum[:9]) + "/" + name
		k.assets[at] = asset{b, "text/javascript; charset=utf-8"}
		s.scripts[name] = at
	}
	for _, lang := range Languages {
		s.texts[lang] = maps.Clone(k.texts[lang])
		maps.Copy(s.texts[lang], own[lang])
		s.templates[lang] = map[string]*template.Template{}
		base, err := template.New("layout.html").Funcs(s.funcs(&rendering{lang: lang})).ParseFS(kitFiles, "files/layout.html", "files/partials.html")
		if err != nil {
			return nil, err
		}
		if slices.Contains(files, "partials.html") {
			if base, err = base.ParseFS(fsys, "partials.html"); err != nil {
				return nil, err
			}
		}
		errorPage, err := base.Clone()
		if err == nil {
			errorPage, err = errorPage.ParseFS(kitFiles, "files/error.html")
		}
		if err != nil {
			return nil, err
		}
		s.templates[lang]["error"] = errorPage
		for _, file := range files {
			if file == "partials.html" {
				continue
			}
			t, err := base.Clone()
			if err == nil {
				t, err = t.ParseFS(fsys, file)
			}
			if err != nil {
				return nil, err
			}
			s.templates[lang][strings.TrimSuffix(path.Base(file), ".html")] = t
		}
	}
	return s, nil
}

// Text is a text of the set in a language, for titles and messages that are made in code.
func (s *Set) Text(lang, key string, args ...any) (string, error) {
	t, ok := s.texts[lang][key]
	if !ok {
		return "", fmt.Errorf("%s.json has no text %q", lang, key)
	}
	if len(args) > 0 {
		t = fmt.Sprintf(t, args...)
	}
	return t, nil
}

// rendering is what the templates' functions know of one request.
type rendering struct {
	lang, other, otherURL string
	path, token           string
	scripts               bool
}

func (s *Set) funcs(q *rendering) template.FuncMap {
	k := s.kit
	return template.FuncMap{
		"t":         func(key string, args ...any) (string, error) { return s.Text(q.lang, key, args...) },
		"known":     func(key string) bool { _, ok := s.texts[q.lang][key]; return ok },
		"lang":      func() string { return q.lang },
		"otherlang": func() string { return q.other },
		"otherurl":  func() string { return q.otherURL },
		"style":     func() template.CSS { return k.style },
		"logo":      func() template.URL { return k.logo },
		"brand":     k.Name,
		"server":    func() string { return k.cfg.ServerName },
		"publicurl": func() string { return k.cfg.PublicURL },
		"help":      func() Branding { return k.cfg.Branding },
		"path":      func() string { return q.path },
		"csrf": func() template.HTML {
			return template.HTML(`<input type="hidden" name="` + csrfField + `" value="` + template.HTMLEscapeString(q.token) + `">`)
		},
		"date": func(ms int64) template.HTML {
			at := time.UnixMilli(ms).UTC()
			layout := "2 Jan 2006, 15:04"
			if q.lang == "zh" {
				layout = "2006年1月2日 15:04"
			}
			return template.HTML(`<time datetime="` + at.Format(time.RFC3339) + `">` + at.Format(layout) + ` UTC</time>`)
		},
		"script": func(name string) (template.HTML, error) {
			at, ok := s.scripts[name]
			if !ok {
				return "", fmt.Errorf("the set has no script %q", name)
			}
			q.scripts = true
			return template.HTML(`<script src="` + at + `" defer></script>`), nil
		},
	}
}

// Lang is the language of a request: what its visitor chose (?lang=zh, then a cookie) or the browser prefers.
func (k *Kit) Lang(r *http.Request) string {
	if chosen := web.QueryString(r, langParam); slices.Contains(Languages, chosen) {
		return chosen
	}
	if c, err := r.Cookie(langCookie); err == nil && slices.Contains(Languages, c.Value) {
		return c.Value
	}
	tags, _, err := language.ParseAcceptLanguage(r.Header.Get("Accept-Language"))
	if err != nil || len(tags) == 0 {
		return Languages[0]
	}
	_, i, _ := k.matcher.Match(tags...)
	return Languages[i]
}

// Render answers with page name. An error is one of the templates and nothing was answered then.
func (s *Set) Render(w http.ResponseWriter, r *http.Request, status int, name string, data any) error {
	return s.RenderTo(w, r, status, name, data)
}

// RenderTo is Render for a page whose forms may lead elsewhere in the end: browsers hold the redirects that follow a form
// against the page's form-action too. targets are origins or schemes (https://app.example.org, io.element.app:).
func (s *Set) RenderTo(w http.ResponseWriter, r *http.Request, status int, name string, data any, targets ...string) error {
	k := s.kit
	q := &rendering{lang: k.Lang(r), path: r.URL.Path, token: k.token(w, r)}
	q.other = Languages[0]
	if q.lang == q.other {
		q.other = Languages[1]
	}
	if r.Method == http.MethodGet {
		query := r.URL.Query()
		query.Set(langParam, q.other)
		q.otherURL = r.URL.Path + "?" + query.Encode()
	}
	if chosen := web.QueryString(r, langParam); chosen == q.lang {
		k.SetCookie(w, &http.Cookie{Name: langCookie, Value: chosen, MaxAge: 365 * 24 * 3600})
	}
	t := s.templates[q.lang][name]
	if t == nil {
		return fmt.Errorf("there is no page %q", name)
	}
	t, err := t.Clone()
	if err != nil {
		return fmt.Errorf("page %s: %w", name, err)
	}
	var b bytes.Buffer
	if err := t.Funcs(s.funcs(q)).Execute(&b, data); err != nil {
		return fmt.Errorf("page %s: %w", name, err)
	}
	policy := k.policy + "; form-action 'self'"
	for _, target := range targets {
		if safeSource(target) {
			policy += " " + target
		}
	}
	if q.scripts {
		policy += "; script-src " + k.origin + assetPath + "; connect-src 'self'"
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	h.Set("Content-Language", q.lang)
	h.Set("Content-Security-Policy", policy)
	h.Set("Referrer-Policy", "no-referrer") // addresses of pages may hold secrets
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Accept-Language, Cookie")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // an error is the client's connection
	return nil
}

// safeSource keeps what a client registered from becoming another directive of the policy.
func safeSource(s string) bool {
	return s != "" && !strings.ContainsAny(s, " ;,'\"*\t\r\n\\")
}

// Problem is what the error page shows.
type Problem struct {
	Code, Message string
	Status        int
	Retry         int // seconds; 0: unknown
}

// Error answers with a page that tells people what went wrong. What is no mxerr.Error becomes a 500 without details.
func (s *Set) Error(w http.ResponseWriter, r *http.Request, err error) {
	p := Problem{Code: "M_UNKNOWN", Status: http.StatusInternalServerError}
	if e := mxerr.As(err); e != nil {
		p = Problem{Code: e.Code, Message: e.Message, Status: e.Status, Retry: int((e.RetryAfter + time.Second - 1) / time.Second)}
		if p.Retry > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(p.Retry))
		}
	} else {
		p.Message = web.RequestID(r)
	}
	if p.Status < 400 || p.Status > 599 {
		p.Status = http.StatusInternalServerError
	}
	if s.Render(w, r, p.Status, "error", p) != nil {
		http.Error(w, p.Message, p.Status)
	}
}

// Handler turns the errors of a page's handler into pages. What was not expected is returned too, so that it is logged.
func (s *Set) Handler(h web.Handler) web.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		err := h(w, r)
		if err == nil {
			return nil
		}
		s.Error(w, r, err)
		if mxerr.As(err) != nil {
			return nil
		}
		return err
	}
}

// Routes serve the scripts of all sets made so far.
func (k *Kit) Routes() []web.Route {
	return []web.Route{{Pattern: "GET " + assetPath + "{hash}/{name}", Handler: k.asset}}
}

// asset handles GET /_moothall/assets/{hash}/{name}.
func (k *Kit) asset(w http.ResponseWriter, r *http.Request) error {
	a, ok := k.assets[assetPath+web.PathParam(r, "hash")+"/"+web.PathParam(r, "name")]
	if !ok {
		return mxerr.NotFound("there is no such file")
	}
	h := w.Header()
	h.Set("Content-Type", a.kind)
	h.Set("Content-Length", strconv.Itoa(len(a.body)))
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(a.body)
	return nil
}
