package sso_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestTexts finds texts that a page names and a language does not have: a page that is seldom seen would fail only then.
func TestTexts(t *testing.T) {
	texts := map[string]string{}
	for _, dir := range []string{"pages", "../homeserver/page/files"} {
		for _, lang := range []string{"en", "zh"} {
			b, err := os.ReadFile(filepath.Join(dir, lang+".json"))
			if err != nil {
				t.Fatal(err)
			}
			var some map[string]string
			if err := json.Unmarshal(b, &some); err != nil {
				t.Fatalf("%s/%s.json: %v", dir, lang, err)
			}
			for key, text := range some {
				texts[lang+" "+key] = text
			}
		}
	}
	pages, err := filepath.Glob("pages/*.html")
	if err != nil || len(pages) < 20 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	used := regexp.MustCompile(`[{(|]\s*t "([^"]+)"`)
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range used.FindAllStringSubmatch(string(b), -1) {
			for _, lang := range []string{"en", "zh"} {
				if texts[lang+" "+m[1]] == "" {
					t.Errorf("%s names the text %q, which %s.json does not have", page, m[1], lang)
				}
			}
		}
	}
}
