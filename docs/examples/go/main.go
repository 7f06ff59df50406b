// Sends likes with the Go standard library. Set LIKES_URL, and LIKES_TOKEN or LIKES_API_KEY if ingest requires
// authentication.
package main

import (
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	attempts    = 6
	longestWait = 30 * time.Second
)

var client = http.Client{Timeout: 30 * time.Second}

// post sends a request, with retries on transient failures. Retries are safe: a like is stored once.
func post(url, contentType, body string) (string, error) {
	for attempt := 1; ; attempt++ {
		result, wait, err := try(url, contentType, body)
		if err == nil || wait < 0 || attempt == attempts {
			return result, err
		}
		if wait == 0 {
			wait = time.Second << (attempt - 1)
		}
		if wait > longestWait {
			wait = longestWait
		}
		// Jitter: many clients must not retry at the same moment.
		time.Sleep(wait + time.Duration(rand.Int63n(int64(wait)/2+1)))
	}
}

// try sends a request once. After a failure it returns the time to wait: 0 if the server gave none, negative if a retry
// cannot succeed.
func try(url, contentType, body string) (string, time.Duration, error) {
	request, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return "", -1, err
	}
	request.Header.Set("Content-Type", contentType)
	if token := os.Getenv("LIKES_TOKEN"); token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	} else if key := os.Getenv("LIKES_API_KEY"); key != "" {
		request.Header.Set("X-Api-Key", key)
	}
	response, err := client.Do(request)
	if err != nil {
		return "", 0, err
	}
	defer response.Body.Close()
	result, err := io.ReadAll(response.Body)
	if err != nil {
		return "", 0, err
	}
	switch response.StatusCode {
	case http.StatusAccepted:
		return string(result), 0, nil
	case 408, 429, 500, 502, 503, 504:
		seconds, _ := strconv.ParseUint(response.Header.Get("Retry-After"), 10, 16)
		return "", time.Duration(seconds) * time.Second, fmt.Errorf("%s: %s", response.Status, result)
	default:
		return "", -1, fmt.Errorf("%s: %s", response.Status, result)
	}
}

func main() {
	url := os.Getenv("LIKES_URL")
	if url == "" {
		url = "http://127.0.0.1:8080"
	}
	var batch strings.Builder
	for user := 8; user <= 10; user++ {
		fmt.Fprintf(&batch, "{\"user_id\": %d, \"post_id\": 42}\n", user)
	}
	for _, send := range []struct{ path, contentType, body string }{
		{"/likes", "application/json", `{"user_id": 7, "post_id": 42}`},
		{"/likes/batch", "application/x-ndjson", batch.String()},
	} {
		result, err := post(url+send.path, send.contentType, send.body)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(result)
	}
}
