// Pushes with the defaults of net/http: go run push.go KEY BODY PUSHES URL... prints each status.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
)

func main() {
	pushes, _ := strconv.Atoi(os.Args[3])
	for _, url := range os.Args[4:] {
		for push := 0; push < pushes; push++ {
			var body io.Reader = strings.NewReader(os.Args[2])
			if push%2 == 1 {
				body = io.MultiReader(body) // of unknown length: in chunks
			}
			request, err := http.NewRequest("POST", url, body)
			if err != nil {
				panic(err)
			}
			request.Header.Set("X-API-Key", os.Args[1])
			request.Header.Set("Content-Type", "application/json")
			answer, err := http.DefaultClient.Do(request)
			if err != nil {
				panic(err)
			}
			io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
			fmt.Println(answer.StatusCode)
		}
	}
}
