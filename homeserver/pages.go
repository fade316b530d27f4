package homeserver

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strconv"

	"github.com/go-json-experiment/json"
	"golang.org/x/text/language"

	"github.com/moothall/moothall/homeserver/web"
)

//go:embed pages
var pageFiles embed.FS

// pages are the few HTML pages of the server itself. They load nothing: the style is in the page, and its hash in the
// Content-Security-Policy.
type pages struct {
	templates map[string]map[string]*template.Template // by language and name
	languages []string
	matcher   language.Matcher
	policy    string
}

// pageData is what the templates may show.
type pageData struct {
	Lang, OtherLang, OtherURL string
	ServerName, PublicURL     string
	Token, Username, Problem  string
	MinLength                 int
	Address, Next, NextHost   string // of an e-mail address to be confirmed
	ForPassword               bool
}

func newPages() (*pages, error) {
	p := &pages{templates: map[string]map[string]*template.Template{}, languages: []string{"en", "zh"},
		matcher: language.NewMatcher([]language.Tag{language.English, language.Chinese})}
	style, err := pageFiles.ReadFile("pages/style.css")
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(style)
	p.policy = "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
	for _, lang := range p.languages {
		texts, err := readTexts(lang)
		if err != nil {
			return nil, err
		}
		p.templates[lang] = map[string]*template.Template{}
		for _, name := range []string{"root", "setup", "done", "closed", "email", "email_done", "email_closed"} {
			// A text that is missing fails the rendering, and so the test that renders all.
			text := func(key string, args ...any) (string, error) {
				t, ok := texts[key]
				if !ok {
					return "", fmt.Errorf("pages/%s.json has no text %q", lang, key)
				}
				if len(args) > 0 {
					t = fmt.Sprintf(t, args...)
				}
				return t, nil
			}
			t, err := template.New("layout.html").Funcs(template.FuncMap{
				"t":     text,
				"style": func() template.CSS { return template.CSS(style) },
			}).ParseFS(pageFiles, "pages/layout.html", "pages/"+name+".html")
			if err != nil {
				return nil, err
			}
			p.templates[lang][name] = t
		}
	}
	return p, nil
}

func readTexts(lang string) (map[string]string, error) {
	b, err := pageFiles.ReadFile("pages/" + lang + ".json")
	if err != nil {
		return nil, err
	}
	var texts map[string]string
	if err := json.Unmarshal(b, &texts); err != nil {
		return nil, fmt.Errorf("pages/%s.json: %w", lang, err)
	}
	return texts, nil
}

// language is what the page's visitor chose (?lang=zh) or the browser prefers.
func (p *pages) language(r *http.Request) int {
	chosen := web.QueryString(r, "lang")
	for i, lang := range p.languages {
		if lang == chosen {
			return i
		}
	}
	tags, _, err := language.ParseAcceptLanguage(r.Header.Get("Accept-Language"))
	if err != nil || len(tags) == 0 {
		return 0
	}
	_, i, _ := p.matcher.Match(tags...)
	return i
}

func (p *pages) write(w http.ResponseWriter, r *http.Request, status int, name string, data pageData) error {
	i := p.language(r)
	data.Lang, data.OtherLang = p.languages[i], p.languages[1-i]
	q := url.Values{"lang": {data.OtherLang}}
	if data.Token != "" {
		q.Set("token", data.Token)
	}
	if name != "done" && name != "email_done" { // which cannot be asked for again
		data.OtherURL = r.URL.Path + "?" + q.Encode()
	}
	var b bytes.Buffer
	if err := p.templates[data.Lang][name].Execute(&b, data); err != nil {
		return fmt.Errorf("page %s: %w", name, err)
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	h.Set("Content-Language", data.Lang)
	h.Set("Content-Security-Policy", p.policy)
	h.Set("Referrer-Policy", "no-referrer") // the setup link holds a secret
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Accept-Language")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // an error is the client's connection
	return nil
}

func (s *Server) pageRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /", Handler: s.rootPage},
		{Pattern: "GET /setup", Rate: web.RateLogin, Handler: s.showSetup},
		{Pattern: "POST /setup", Rate: web.RateLogin, Handler: s.finishSetup},
	}
}

// rootPage handles GET /: people who open the server's address learn what it is and how to use it.
func (s *Server) rootPage(w http.ResponseWriter, r *http.Request) error {
	return s.pages.write(w, r, http.StatusOK, "root", pageData{ServerName: s.cfg.ServerName, PublicURL: s.cfg.PublicURL})
}
